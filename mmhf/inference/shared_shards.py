"""Shards that several processes fill at the same time, each one by one of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator

from filelock import FileLock, Timeout

from mmhf.errors import InputError
from mmhf.inference.shards import IDENTITY_FILE, ShardFolder


class SharedShardFolder(ShardFolder):
    """A `ShardFolder` for any number of processes, on all machines that see the folder.

    Who works on a shard holds a lock on it, which ends with the process: what a killed one had begun is free again.
    """

    @contextlib.contextmanager
    def joined(self, *, discard_other: bool) -> Iterator[SharedShardFolder]:
        """Take part. The last one to leave removes the folder, if the output is there.

        Args:
            discard_other (`bool`): Throw away shards of another identity instead of refusing them.

        Raises:
            InputError: The folder has shards of another identity, or others work on them.
        """
        member = self._join(discard_other)
        try:
            yield self
        finally:
            self._leave(member)

    def tidy(self) -> None:
        """Remove what a process left behind that was killed after it had written the output."""
        if self.path.exists() and self._is_same_work():
            with self.joined(discard_other=False):
                pass

    def claim(self, number: int) -> FileLock | None:
        """The lock of a shard that is this process's now; None if another one works on it, or it is done."""
        lock = FileLock(self.path / f".claim-{number:06d}", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        if self._shard_path(number).exists():
            lock.release()
            return None
        return lock

    @contextlib.contextmanager
    def assembling(self) -> Iterator[None]:
        """Let one process at a time make the output."""
        with FileLock(self.path / ".assembling"):
            yield

    def _join(self, discard_other: bool) -> FileLock:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock"):
                if not (self.path / ".lock").exists():  # the last of the others has just removed the folder
                    continue
                if self._members() and not self._is_same_work():
                    raise InputError(f"{self.output_path}: another process is writing it from other inputs")
                self._check_identity(discard_other)
                member = FileLock(self.path / f".member-{uuid.uuid4().hex}", timeout=0)
                member.acquire()
                return member

    def _is_same_work(self) -> bool:
        path = self.path / IDENTITY_FILE
        return not path.is_file() or json.loads(path.read_text(encoding="utf-8")) == self.identity

    def _leave(self, member: FileLock) -> None:
        with FileLock(self.path / ".lock"):
            member.release()
            if not self._members() and self.output_path.exists():
                shutil.rmtree(self.path)

    def _members(self) -> int:
        """How many processes take part; the marks of killed ones are removed."""
        count = 0
        for path in self.path.glob(".member-*"):
            lock = FileLock(path, timeout=0)
            try:
                with lock:
                    path.unlink(missing_ok=True)
            except Timeout:
                count += 1
        return count
