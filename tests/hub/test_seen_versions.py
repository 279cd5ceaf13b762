"""A tag that is moved after it was used is noticed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from mmhf.errors import InputError
from mmhf.hub.history import read_history
from mmhf.hub.lineage import release_settings
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model
from mmhf.hub.seen_versions import ACCEPT_MOVED, MovedVersionError, check_seen

REPO = "org/fakeddit"


@pytest.fixture
def moved(hub: LoopbackHub, make_run: Callable[..., Path]) -> LoopbackHub:
    """Two versions, of which the first was used and then pointed elsewhere."""
    for version in ("1.6", "1.7"):
        settings = {"repo": REPO, "version": version, "push": True}
        push_release(make_run(version, seed=int(version[-1])), release_settings(settings))
    resolve_model(f"{REPO}@v1.6")
    tags = hub.repo(REPO).tags
    hub.first = tags["v1.6"]  # type: ignore[attr-defined]
    tags["v1.6"] = tags["v1.7"]
    return hub


def test_a_moved_tag_is_refused_by_every_name(moved: LoopbackHub):
    first, second = moved.first, moved.repo(REPO).tags["v1.7"]
    for name in (f"{REPO}@v1.6", f"{REPO}@1.6"):
        with pytest.raises(
            MovedVersionError, match=f"tag has moved from commit {first[:12]} to {second[:12]}"
        ) as caught:
            resolve_model(name)
        assert "\n" not in str(caught.value) and "no such folder" not in str(caught.value)
    with pytest.raises(InputError, match="tag has moved"):
        read_history(REPO)
    assert resolve_model(f"{REPO}@{first}").commit == first, "what it was can still be had"
    assert resolve_model(f"{REPO}@v1.7").commit == second


def test_it_can_be_accepted_for_good(moved: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog):
    second = moved.repo(REPO).tags["v1.7"]
    monkeypatch.setenv(ACCEPT_MOVED, "1")
    with caplog.at_level(logging.WARNING):
        assert resolve_model(f"{REPO}@v1.6").commit == second
    assert "has moved from commit" in caplog.text
    monkeypatch.delenv(ACCEPT_MOVED)
    assert resolve_model(f"{REPO}@v1.6").commit == second


def test_what_is_remembered_may_be_lost_but_not_read_wrongly(moved: LoopbackHub, tmp_path: Path, caplog):
    (file,) = (tmp_path / "mmhf" / "versions").glob("*.json")
    assert json.loads(file.read_text()) == {"v1.6": moved.first}
    for text in ("{", "[]", '{"v1.6": 3}'):
        file.write_text(text)
        with caplog.at_level(logging.WARNING):
            resolve_model(f"{REPO}@v1.6")
        assert f"{file}: is damaged" in caplog.text
        caplog.clear()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_can_only_be_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tmp_path.chmod(0o555)
    check_seen(REPO, "v1.0", "abc")
    assert "a tag that moves would not be noticed" in caplog.text
