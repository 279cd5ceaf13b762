"""Releases on the Hub: one commit, then its tag, then the branch that follows.

The Hub has no request that changes two refs at once, so the order decides what a push that dies can leave behind:

1. The commit goes to a branch of this push's own, `releasing-v1.8-CONTENT-RANDOM`, made at the head of `main`. Nobody
   reads it.
2. The commit is looked at: all files are there with their hashes.
3. The tag `v1.8` is set on it. This one request is the release; before it there is nothing, after it all of it. Of two
   pushes of one version one sets the tag, and the other is told that the version exists.
4. `main` (or the channel) gets the same files in one commit, if the version is newer than what it holds.
5. The tag `best` is set anew if another version is best now.
6. The branches `releasing-v1.8-…` are deleted. While one with the tag's content is there the release is unfinished,
   and doing it again finishes it.

A push that fails and lives to tell takes back what it did, its tag included unless `main` has moved already. One that
is killed between 3 and 4 leaves a whole version that `main` does not follow yet.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from mmhf.errors import InputError
from mmhf.files import RELEASE_FILE
from mmhf.hub.assembling import assemble, check_run
from mmhf.hub.hub_errors import HUB_ERRORS, is_hub_error, named_hub_errors, with_retries
from mmhf.hub.hub_repo import HubRepo, Refs, download_file
from mmhf.hub.manifest import Release, ReleaseNotes, Version, released_files
from mmhf.hub.remote_code import add_remote_code
from mmhf.hub.secret_scan import refuse_secrets
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import ReleaseSection
from mmhf.recipe.training_sections import greater_is_better

logger = logging.getLogger(__name__)

_MAIN, _BEST = "main", "best"
_BREAKS: tuple[type[BaseException], ...] = (*HUB_ERRORS, KeyboardInterrupt)


@dataclass(frozen=True)
class PushedRelease:
    """A version on the Hub.

    Args:
        repo, version (`str`): Where it is and what it is called.
        commit (`str`): What its tag points to.
        url (`str`): Its page.
    """

    repo: str
    version: str
    commit: str
    url: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.version} ({self.url}/tree/{self.version})"


def push_release(run_dir: str | Path, settings: ReleaseSection, *, notes: ReleaseNotes | None = None) -> PushedRelease:
    """Release a run to the Hub, or finish a release that was interrupted.

    Args:
        run_dir (`str` or `Path`): A finished run folder.
        settings ([`ReleaseSection`]): Repository, version, channel, which metric is best.
        notes ([`ReleaseNotes`], *optional*): Parent and what else to record; the rest is filled in.

    Raises:
        InputError: The version exists, a file holds a secret, the run is not finished, or the Hub refuses; nothing is
            then released.
        UnreachableError: The Hub does not answer.
    """
    run_dir, tag = Path(run_dir), str(Version.parse(settings.version))
    check_run(run_dir)
    notes = replace(
        notes or ReleaseNotes(),
        name=settings.repo.rpartition("/")[2],
        version=tag,
        model=settings.repo,
        revision=tag,
        card=settings.card,
    )
    with tempfile.TemporaryDirectory() as scratch, named_hub_errors(f"{settings.repo}@{tag}"):
        staging = Path(scratch)
        release = assemble(staging, run_dir, notes, place=_link)
        metric = settings.best_metric
        if metric is not None and _number(release, metric) is None:
            hint = did_you_mean(nearest_names(metric, release.metrics))
            raise InputError(f"release.best_metric: the run has no number {metric!r}{hint}")
        return _Push(HubRepo(settings.repo), settings, staging, release).run()


def complete_pushed_run(repo: str, run_dir: str | Path, *, revision: str | None = None) -> None:
    """Add to a repository that `training.push_to_hub` has filled what a run has once it is finished.

    Trainer pushes the weights, before anything was measured. One more commit brings metrics, evaluation and the code
    that serves the model without mmhf.

    Args:
        repo (`str`): `ORG/NAME`.
        run_dir (`str` or `Path`): The finished run folder.
        revision (`str`, *optional*): The branch that Trainer pushed to; absent, `main`.

    Raises:
        InputError: A file holds a secret, or the Hub refuses.
        UnreachableError: The Hub does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch, named_hub_errors(repo):
        staging = Path(scratch)
        for source in released_files(run_dir):
            if source.suffix != ".safetensors":
                shutil.copyfile(source, staging / source.name)
        add_remote_code(staging)
        refuse_secrets(sorted(staging.iterdir()))
        message = "Metrics, and the code that serves the model"
        with_retries(
            lambda: HfApi().upload_folder(repo_id=repo, folder_path=staging, revision=revision, commit_message=message)
        )


def check_push_is_possible(settings: ReleaseSection) -> None:
    """Raise `InputError` if a push would be refused, so that a program can say so before it trains for hours."""
    repo, version = HubRepo(settings.repo), Version.parse(settings.version)
    with named_hub_errors(f"{settings.repo}@{version}"):
        repo.whoami()
        refs = repo.refs()
        if refs is not None:
            _refuse_existing(repo, refs, version, pending=_pending(str(version)))


class _Push:
    """The steps of one push."""

    def __init__(self, repo: HubRepo, settings: ReleaseSection, staging: Path, release: Release) -> None:
        self.repo, self.settings, self.staging, self.release = repo, settings, staging, release
        self.tag = release.version
        self.of_content = f"{_pending(self.tag)}{release.commit[:12]}-"
        self.pending = f"{self.of_content}{secrets.token_hex(4)}"
        self.channel = settings.channel or _MAIN
        self.commit: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        return {path.name: path for path in self.staging.iterdir()}

    def run(self) -> PushedRelease:
        with_retries(lambda: ModelCard.load(self.staging / "README.md").validate(repo_type="model"))
        self.repo.create(private=self.settings.private)
        refs = self._refs()
        existing = refs.tag_of(Version.parse(self.tag))
        if existing is None:
            commit = self._tag_new_commit(refs)
        else:
            _refuse_existing(self.repo, refs, Version.parse(self.tag), pending=self.of_content)
            commit = self._take_up(existing, refs)
        self._move_channel(commit)
        with named_hub_errors(f"{self.repo.name}@{self.tag} is released, but do it again to finish the tag {_BEST}"):
            self._move_best()
            for branch in self._refs().branches:
                if branch.startswith(_pending(self.tag)):
                    self.repo.delete_branch(branch)
        return PushedRelease(self.repo.name, self.tag, commit, self.repo.url)

    def _refs(self) -> Refs:
        refs = self.repo.refs()
        if refs is None:
            raise InputError(f"{self.repo.name}: the repository has gone while it was pushed to; do it again")
        return refs

    def _tag_new_commit(self, refs: Refs) -> str:
        base = refs.branches.get(self.channel) or refs.branches[_MAIN]
        try:
            self.repo.create_branch(self.pending, base)
            commit = self.commit = self.repo.commit(self.pending, base, self.files, f"Release {self.tag}")
            if not self.repo.holds(commit, self.files):
                raise InputError(f"{self.repo.name}@{self.tag}: the Hub holds other bytes than were sent; do it again")
            self.repo.create_tag(self.tag, commit)
        except _BREAKS as error:
            self._take_back()
            if not isinstance(error, KeyboardInterrupt):
                self._say_if_taken()
            raise
        return commit

    def _say_if_taken(self) -> None:
        """Raise `InputError` where the version has been released by another push in the meantime."""
        try:
            refs = self._refs()
        except HUB_ERRORS:  # what broke the push is said instead
            return
        existing = refs.tag_of(Version.parse(self.tag))
        if existing is not None and refs.tags[existing] != self.commit:
            raise InputError(
                f"{self.repo.name}: version {existing} exists, another push has just made it; choose another number"
            )

    def _take_up(self, existing: str, refs: Refs) -> str:
        """Go on after the tag: the tag's own files are what the channel gets."""
        released = self.repo.release_at(existing)
        if released is None or released.commit != self.release.commit:
            raise InputError(f"{self.repo.name}@{existing}: exists with other content; choose another number")
        logger.info("Finishing the interrupted release of %s", existing)
        release_file = download_file(self.repo.name, RELEASE_FILE, existing)
        assert release_file is not None
        (self.staging / RELEASE_FILE).unlink()
        _link(release_file.resolve(), self.staging / RELEASE_FILE)
        return refs.tags[existing]

    def _move_channel(self, commit: str) -> None:
        try:
            head = self._refs().branches.get(self.channel)
            if head is None:
                self.repo.create_branch(self.channel, commit)
            elif self._is_newer_than(head):
                self.repo.commit(self.channel, head, self.files, f"Release {self.tag}")
        except _BREAKS:
            self._take_back()
            raise

    def _is_newer_than(self, head: str) -> bool:
        held = self.repo.release_at(head)
        if held is None or Version.parse(held.version) < Version.parse(self.tag):
            return True
        if Version.parse(held.version) > Version.parse(self.tag):
            logger.info("%s stays at %s, which is newer", self.channel, held.version)
        return False

    def _move_best(self) -> None:
        metric = self.settings.best_metric
        if metric is None:
            return
        refs = self._refs()
        values = {tag: _number(self.repo.release_at(tag), metric) for tag in refs.versions()}
        known = {tag: value for tag, value in values.items() if value is not None}
        is_greater_better = self.settings.greater_is_better
        better = max if (greater_is_better(metric) if is_greater_better is None else is_greater_better) else min
        best = better(reversed(known), key=known.__getitem__)  # of equals the newest
        if refs.tags.get(_BEST) != refs.tags[best]:
            self.repo.delete_tag(_BEST)
            self.repo.create_tag(_BEST, refs.tags[best])
            logger.info("%s: the best by %s is %s", self.repo.name, metric, best)

    def _take_back(self) -> None:
        """Leave neither tag nor branch of a push that failed, if the Hub still listens and nothing follows it yet."""
        try:
            refs = self._refs()
            head = refs.branches.get(self.channel)
            if head is not None and self.repo.holds(head, self.files):
                return
            if self.commit is not None and refs.tags.get(self.tag) == self.commit:
                self.repo.delete_tag(self.tag)
            self.repo.delete_branch(self.pending)
        except HUB_ERRORS as error:
            if not is_hub_error(error) and not isinstance(error, InputError):
                raise
            logger.warning("%s: what the push left could not be removed; doing it again will", self.repo.name)


def _pending(tag: str) -> str:
    """What the branches of unfinished pushes of a version begin with."""
    return f"releasing-{tag}-"


def _refuse_existing(repo: HubRepo, refs: Refs, version: Version, *, pending: str) -> None:
    """Raise `InputError` where a version exists, unless a push with such a branch is to be finished."""
    existing = refs.tag_of(version)
    if existing is not None and not any(branch.startswith(pending) for branch in refs.branches):
        raise InputError(f"{repo.name}: version {existing} exists and versions are immutable; choose another number")


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _number(release: Release | None, metric: str) -> float | None:
    value = None if release is None else release.metrics.get(metric)
    return value if isinstance(value, (int, float)) else None
