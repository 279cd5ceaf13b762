"""Releases: versions, lineage, model cards, and the way from a reference to a model folder."""

from __future__ import annotations

from mmhf.hub.manifest import Release, ReleaseReference, read_release, verify_release
from mmhf.hub.releases import ResolvedModel, check_version_is_free, list_versions, resolve_model, write_release

__all__ = [
    "Release",
    "ReleaseReference",
    "ResolvedModel",
    "check_version_is_free",
    "list_versions",
    "read_release",
    "resolve_model",
    "verify_release",
    "write_release",
]
