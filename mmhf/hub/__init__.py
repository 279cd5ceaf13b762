"""Releases: versions, lineage, model cards, and the way from a reference to a model folder."""

from __future__ import annotations

from mmhf.hub.references import ResolvedModel, resolve_model
from mmhf.hub.releases import Release, ReleaseReference, list_versions, read_release, verify_release, write_release

__all__ = [
    "Release",
    "ReleaseReference",
    "ResolvedModel",
    "list_versions",
    "read_release",
    "resolve_model",
    "verify_release",
    "write_release",
]
