"""Pushes that are killed, cut off or refused: no half version, no moved branch, one line that says what to do."""

from __future__ import annotations

import contextlib
import copy
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import READER_TOKEN, TOKEN, LoopbackHub
from loopback_store import Repo

from mmhf.errors import DamagedError, InputError
from mmhf.hub.hub_repo import download_model
from mmhf.hub.lineage import release_settings
from mmhf.hub.manifest import verify_release
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model

REPO = "org/fakeddit"
PAGES = {
    "html": b"<!DOCTYPE html><html><body>Please log in to the network.</body></html>",
    "list": b"[]",
    "object": b"{}",
    "null": b"null",
    "nothing": b"",
}
_fork = multiprocessing.get_context("fork")

# What the Hub is asked in one push, by the step that fails when the request does.
STEPS = [
    "POST /api/validate-yaml",
    "POST /api/repos/create",
    "GET .*/refs",
    "POST .*/branch/releasing-v1.7",
    "POST .*/preupload/releasing-v1.7",
    "POST .*/lfs/objects/batch",
    "PUT /lfs/",
    "POST /verify-lfs",
    "POST .*/commit/releasing-v1.7",
    "GET .*/tree/",
    "POST .*/tag/",
    "POST .*/preupload/main",
    "POST .*/commit/main",
]


@pytest.fixture
def runs(make_run: Callable[..., Path]) -> dict[str, Path]:
    return {version: make_run(version, seed=int(version[-1])) for version in ("1.6", "1.7")}


@pytest.fixture(scope="module")
def first_release() -> dict[str, Any]:
    """What the first push of this file left on the Hub; each test gets a copy."""
    return {}


@pytest.fixture
def released(hub: LoopbackHub, runs: dict[str, Path], first_release: dict[str, Any]) -> LoopbackHub:
    """A Hub with v1.6, to which v1.7 is to be added."""
    if not first_release:
        push(runs["1.6"], "1.6")
        first_release.update(repo=copy.deepcopy(hub.repo(REPO)), large=dict(hub.store.large))
    hub.store.repos[REPO], hub.store.large = copy.deepcopy(first_release["repo"]), dict(first_release["large"])
    hub.requests.clear()
    return hub


def push(run_dir: Path, version: str) -> None:
    values = {"repo": REPO, "version": version, "push": True, "best_metric": "test_accuracy"}
    push_release(run_dir, release_settings(values))


def state(repo: Repo) -> tuple[dict[str, str], str]:
    return dict(repo.tags), repo.branches["main"]


def assert_whole(hub: LoopbackHub, version: str, scratch: Path) -> None:
    """The version's files are all there, with the hashes that its release.json records."""
    scratch.mkdir(parents=True)
    for name, content in hub.files(REPO, version).items():
        (scratch / name).write_bytes(content)
    verify_release(scratch)


def _push_and_die(hub: LoopbackHub, run_dir: Path, number: int, *, after: bool) -> int | None:
    """Push in another process, which is killed while it waits for the answer to its `number`-th request."""
    child = _fork.Process(target=push, args=(run_dir, "1.7"))

    def kill() -> None:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # who waits for the child may have been faster
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead before the request goes on

    hub.requests.clear()
    fault = hub.fault(".*", call=kill, after=after)
    fault.applies = lambda line: len(hub.requests) == number  # type: ignore[method-assign]
    child.start()
    child.join()
    hub.faults.clear()
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_each_request_in_turn(released: LoopbackHub, runs: dict[str, Path], after: bool, tmp_path: Path):
    before, untouched = copy.deepcopy(released.repo(REPO)), state(released.repo(REPO))
    large = dict(released.store.large)
    outcomes = []
    for number in range(1, 200):
        released.store.repos[REPO], released.store.large = copy.deepcopy(before), dict(large)
        exit_code = _push_and_die(released, runs["1.7"], number, after=after)
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        repo = released.repo(REPO)
        is_released = "v1.7" in repo.tags
        outcomes.append((is_released, repo.branches["main"] != untouched[1]))
        if is_released:
            assert_whole(released, "v1.7", tmp_path / f"{number}")
        is_finished = not any(branch.startswith("releasing-v1.7-") for branch in repo.branches)
        if is_released and is_finished:  # only the answer to the last request was lost
            with pytest.raises(InputError, match="version v1.7 exists"):
                push(runs["1.7"], "1.7")
        else:
            push(runs["1.7"], "1.7")
        assert released.files(REPO, "main") == released.files(REPO, "v1.7")
        assert repo.branches.keys() == {"main"} and repo.tags.keys() == {"v1.6", "v1.7", "best"}
        assert_whole(released, "v1.7", tmp_path / f"finished-{number}")
    # The tag is the release: before it nothing has changed, and main never runs ahead of it.
    assert len(outcomes) > 20 and outcomes == sorted(outcomes)
    assert (False, True) not in outcomes
    assert {(False, False), (True, False), (True, True)} == set(outcomes)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", [500, None], ids=["500", "cut"])
@pytest.mark.slow
def test_a_push_that_fails_takes_back_what_it_did(released, runs, no_waiting, step: str, status: int | None):
    untouched = state(released.repo(REPO))
    fault = released.fault(step, status=status)
    with pytest.raises(InputError, match=r"org/fakeddit@v1\.7: ") as caught:
        push(runs["1.7"], "1.7")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert no_waiting, "what may pass is tried again"
    released.faults.remove(fault)
    assert state(released.repo(REPO)) == untouched
    push(runs["1.7"], "1.7")
    assert released.files(REPO, "main") == released.files(REPO, "v1.7")
    assert released.repo(REPO).branches.keys() == {"main"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["lost", "answer lost"])
@pytest.mark.slow
def test_one_failure_is_got_over(released, runs, no_waiting, step: str, after: bool):
    released.fault(step, times=1, after=after)
    push(runs["1.7"], "1.7")
    repo = released.repo(REPO)
    assert released.files(REPO, "main") == released.files(REPO, "v1.7")
    assert [commit.message for commit in repo.history("v1.7")][:2] == ["Release v1.7", "Release v1.6"]
    assert [commit.message for commit in repo.history("main")][:2] == ["Release v1.7", "Release v1.6"]
    assert repo.branches.keys() == {"main"}


@pytest.mark.parametrize(
    ("status", "step", "message"),
    [
        (401, "POST .*/tag/", "does not accept the login.*hf auth login"),
        (403, "POST .*/branch/", "may not write there"),
        (409, "POST .*/branch/", "exists already, or another push"),
        (412, "POST .*/commit/", "somebody else has pushed"),
        (413, "PUT /lfs/", "larger than the Hub takes"),
        (429, "POST .*/tag/", "too many requests"),
        (500, "POST .*/commit/", "the Hub has a problem"),
        (503, "GET .*/refs", "the Hub has a problem"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(released, runs, no_waiting, status: int, step: str, message: str):
    untouched = state(released.repo(REPO))
    released.fault(step, status=status, message=f"no, {TOKEN}\nand more")
    with pytest.raises(InputError, match=rf"org/fakeddit@v1\.7: .*{message}.*{status}") as caught:
        push(runs["1.7"], "1.7")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert state(released.repo(REPO)) == untouched


def test_a_rate_limit_is_waited_for(released: LoopbackHub, runs: dict[str, Path], no_waiting: list[float]):
    released.fault("POST .*/tag/", status=429, headers={"Retry-After": "17"}, times=1)
    push(runs["1.7"], "1.7")
    assert 17 in no_waiting
    assert "v1.7" in released.repo(REPO).tags


def test_bytes_with_another_hash_are_not_released(released, runs, monkeypatch: pytest.MonkeyPatch):
    """The server swallows what arrived damaged; only a look at what it holds shows it."""
    untouched = state(released.repo(REPO))
    monkeypatch.setattr(
        "loopback_hub._Answer.lfs_verify", lambda self: self.store.large.update(self.store.arrived) or {}
    )
    monkeypatch.setattr(
        "loopback_hub._Answer.lfs_put",
        lambda self, oid: self.store.arrived.update({oid: self.request.body[::-1]}) or (200, {}, b""),
    )
    with pytest.raises(InputError, match=r"org/fakeddit@v1\.7: the Hub holds other bytes than were sent"):
        push(runs["1.7"], "1.7")
    assert state(released.repo(REPO)) == untouched


def test_a_hash_that_the_server_finds_wrong_is_named(released, runs, monkeypatch: pytest.MonkeyPatch):
    untouched = state(released.repo(REPO))
    monkeypatch.setattr(
        "loopback_hub._Answer.lfs_put",
        lambda self, oid: self.store.arrived.update({oid: b"other"}) or (200, {}, b""),
    )
    with pytest.raises(InputError, match="another hash than those that were sent"):
        push(runs["1.7"], "1.7")
    assert state(released.repo(REPO)) == untouched


def test_who_may_not_write_is_told(released: LoopbackHub, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    with pytest.raises(InputError, match="may not write there"):
        push(runs["1.7"], "1.7")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(InputError, match="hf auth login"):
        push(runs["1.7"], "1.7")


@pytest.mark.slow
def test_two_pushes_at_the_same_time_lose_nothing(released: LoopbackHub, runs: dict[str, Path]):
    """Somebody else moves main between our tag and our move of main."""
    repo = released.repo(REPO)

    def interfere() -> None:
        repo.branches["main"] = repo.add(dict(repo.find("main").tree), repo.branches["main"], "somebody else")

    fault = released.fault("POST .*/preupload/main", call=interfere, times=1)
    with pytest.raises(InputError, match="somebody else has pushed"):
        push(runs["1.7"], "1.7")
    assert "v1.7" not in repo.tags
    assert fault.times == 0
    push(runs["1.7"], "1.7")
    assert "somebody else" in [commit.message for commit in repo.history("main")]
    assert released.files(REPO, "main") == released.files(REPO, "v1.7")


@pytest.mark.slow
def test_of_two_pushes_of_one_version_one_wins(released: LoopbackHub, runs: dict[str, Path], make_run):
    """At each request of one, another run is released as the same version from beginning to end."""
    before, large = copy.deepcopy(released.repo(REPO)), dict(released.store.large)
    other, lost = make_run("other", seed=77), 0
    for step in STEPS:
        released.store.repos[REPO], released.store.large = copy.deepcopy(before), dict(large)
        fault = released.fault(step, call=lambda: push(other, "1.7"), times=1, status=500)
        try:
            push(runs["1.7"], "1.7")
            winner = runs["1.7"]
        except InputError as error:
            assert "version v1.7 exists" in str(error)
            winner, lost = other, lost + 1
        assert fault.times == 0
        repo = released.repo(REPO)
        assert released.files(REPO, "v1.7")["model.safetensors"] == (winner / "model.safetensors").read_bytes()
        assert released.files(REPO, "main") == released.files(REPO, "v1.7")
        assert repo.branches.keys() == {"main"} and repo.tags.keys() == {"v1.6", "v1.7", "best"}
        released.faults.clear()
    assert lost > len(STEPS) / 2


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.slow
def test_a_proxys_page_in_the_place_of_an_answer_is_one_line(released, runs, no_waiting, step: str, page: bytes):
    untouched = state(released.repo(REPO))
    fault = released.fault(step, page=page)
    try:
        push(runs["1.7"], "1.7")
    except InputError as error:
        assert "\n" not in str(error) and "org/fakeddit" in str(error)
        released.faults.remove(fault)
        tags, main = state(released.repo(REPO))
        assert {tag: tags[tag] for tag in untouched[0]} == untouched[0] or main != untouched[1]
        push(runs["1.7"], "1.7")
    assert released.files(REPO, "v1.7") == released.files(REPO, "main")


@pytest.mark.parametrize(
    "step", ["GET .*/refs", "HEAD .*", "GET .*/resolve/", "GET .*/revision/", "GET .*/tree/", ".*"]
)
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.slow
def test_a_proxys_page_in_the_place_of_a_download_is_one_line(released, no_waiting, step: str, page: bytes):
    fault = released.fault(step, page=page)
    try:
        path = resolve_model(f"{REPO}@v1.6").path
    except InputError as error:
        assert "\n" not in str(error) and "org/fakeddit" in str(error)
        released.faults.remove(fault)
        path = resolve_model(f"{REPO}@v1.6").path
    verify_release(path, exactly=True)


def test_a_release_whose_best_tag_fails_says_so_and_is_finished_later(released, make_run, no_waiting):
    run_dir = make_run("better", seed=9, metrics={"test_accuracy": 0.99})
    fault = released.fault("DELETE .*/tag/best", status=500)
    with pytest.raises(InputError, match=r"org/fakeddit@v1\.7 is released, but do it again to finish the tag best"):
        push(run_dir, "1.7")
    repo = released.repo(REPO)
    assert released.files(REPO, "main") == released.files(REPO, "v1.7") and repo.tags["best"] == repo.tags["v1.6"]
    released.faults.remove(fault)
    push(run_dir, "1.7")
    assert repo.tags["best"] == repo.tags["v1.7"] and repo.branches.keys() == {"main"}
    with pytest.raises(InputError, match=r"version v1\.7 exists"):
        push(run_dir, "1.7")


def test_a_download_that_is_cut_goes_on(released: LoopbackHub, no_waiting: list[float]):
    released.fault("GET .*/resolve/.*model.safetensors", cut=True, times=1)
    verify_release(download_model(REPO, "v1.6"))
    gets = [
        request for request in released.requests if request.line.startswith("GET ") and "safetensors" in request.line
    ]
    assert len(gets) == 2


def test_damaged_bytes_are_fetched_again_and_then_refused(released, caplog: pytest.LogCaptureFixture, tmp_path):
    fault = released.fault("GET .*/resolve/.*model.safetensors", corrupt=True)
    with pytest.raises(InputError, match=r"org/fakeddit@v1\.6|model\.safetensors has changed"):
        download_model(REPO, "v1.6")
    with pytest.raises(DamagedError, match=r"org/fakeddit@v1\.6: downloaded twice, and damaged both times") as caught:
        resolve_model(f"{REPO}@v1.6")
    assert "no such folder" not in str(caught.value)
    fault.times = 0
    with caplog.at_level(logging.WARNING):
        verify_release(download_model(REPO, "v1.6"))
    assert "downloading it again" in caplog.text
