"""Work that is done in shards by any number of processes and survives their being killed: finished shards stay on
disk beside the output."""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from filelock import FileLock, Timeout

from mmhf.errors import DamagedError, InputError
from mmhf.files import read_json_object, write_json

logger = logging.getLogger(__name__)

IDENTITY_FILE = "identity.json"


class ShardFolder:
    """The folder `OUTPUT.partial/` with one parquet file for each finished shard.

    All processes that see the folder can work in it, on other machines too. Who works on a shard holds a lock on it,
    which ends with the process: what a killed one had begun is free again.

    Args:
        output_path (`Path`): The file that the shards will become.
        identity (`Mapping[str, str]`): What decides the result, by name (`input`, `model`, `batch size`, …). Shards
            made under another identity are never mixed in.
        is_complete (`Callable`): Whether the output has been written, and the folder can go.
        find_change (`Callable`): Names what the finished shards were made from that has changed since, where the
            identity does not tell, such as an image.
    """

    def __init__(
        self,
        output_path: Path,
        identity: Mapping[str, str],
        *,
        is_complete: Callable[[], bool] | None = None,
        find_change: Callable[[ShardFolder], str | None] = lambda shards: None,
    ) -> None:
        self.output_path = output_path
        self.path = output_path.with_name(f"{output_path.name}.partial")
        self.identity = dict(identity)
        self.work = ""
        """Name of the folder's job, once this process has joined it; a restarted job has a new one."""
        self._is_complete = is_complete or output_path.exists
        self._find_change = find_change

    @contextlib.contextmanager
    def joined(self, *, discard_other: bool) -> Iterator[ShardFolder]:
        """Take part. The last one to leave removes the folder, if the output is complete.

        Args:
            discard_other (`bool`): Throw away shards of another identity instead of refusing them.

        Raises:
            InputError: The folder has shards of another identity, or others work on them.
        """
        member = self._join(discard_other)
        try:
            yield self
        finally:
            with FileLock(self.path / ".lock"):
                member.release()
                if not self._members() and self._is_complete():
                    shutil.rmtree(self.path)

    def tidy(self) -> None:
        """Remove the leftovers of a process that was killed after it had written the output."""
        if self.path.exists() and self._changes() in ([], [IDENTITY_FILE]):  # the identity may be gone already
            with contextlib.suppress(FileNotFoundError), FileLock(self.path / ".lock"):  # another one tidies up, too
                if not self._members():
                    shutil.rmtree(self.path)

    def claim(self, number: int) -> FileLock | None:
        """The lock of a shard that is this process's now; None if another one works on it, or it is done."""
        lock = FileLock(self.path / f".claim-{number:06d}", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        if number in self._files():
            lock.release()
            return None
        return lock

    @contextlib.contextmanager
    def assembling(self) -> Iterator[None]:
        """Let one process at a time make the output."""
        with FileLock(self.path / ".assembling"):
            yield

    def finished(self) -> set[int]:
        """Numbers of the shards that are done."""
        return set(self._files())

    def write(self, number: int, table: pa.Table) -> None:
        """Store a finished shard, whole or not at all, with the hash of its bytes in its name."""
        temporary = self.path / f".shard-{number:06d}.{uuid.uuid4().hex}"
        try:
            pq.write_table(table, temporary)
            temporary.replace(self.path / f"shard-{number:06d}-{_shard_hash(number, temporary)}.parquet")
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard, or some of its columns."""
        return pq.read_table(self._files()[number], columns=columns)

    def schema(self, number: int) -> pa.Schema:
        """The columns of a shard, and what it says of itself."""
        return pq.read_schema(self._files()[number])

    def _files(self) -> dict[int, Path]:
        return {int(path.stem.split("-")[1]): path for path in self.path.glob("shard-*-*.parquet")}

    def _join(self, discard_other: bool) -> FileLock:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock"):
                if not (self.path / ".lock").exists():  # the last of the others has just removed the folder
                    continue
                self._agree(discard_other)
                member = FileLock(self.path / f".member-{uuid.uuid4().hex}", timeout=0)
                member.acquire()
                return member

    def _agree(self, discard_other: bool) -> None:
        """See that the folder's shards are of this work, or make it so."""
        changes = self._changes()
        if not changes and not self._members():
            for number, path in sorted(self._files().items()):
                if path.stem.split("-")[2] != _shard_hash(number, path):
                    logger.warning("%s: is damaged; its rows are done again", path)
                    path.unlink()
        if not changes and self.finished():
            change = self._find_change(self)
            changes = [] if change is None else [change]
        if changes and self._members():
            raise InputError(f"{self.output_path}: another process is writing it from other inputs")
        if changes and self.finished() and not discard_other:
            if IDENTITY_FILE in changes:
                raise DamagedError(
                    f"{self.path / IDENTITY_FILE}: is missing or damaged, so that nobody knows what its shards were "
                    "made from; restore it, or overwrite to start again"
                )
            raise InputError(
                f"{self.path}: begun with another {', '.join(changes)}; go back to that, or overwrite to start again"
            )
        if changes:
            for shard in self.path.glob("shard-*"):
                shard.unlink()
        begun = self.path / IDENTITY_FILE
        if changes or not begun.is_file():
            write_json(begun, {"work": uuid.uuid4().hex, "identity": self.identity})
        self.work = read_json_object(begun)["work"]

    def _changes(self) -> list[str]:
        """By name, what the folder's work was begun with that is another now."""
        path = self.path / IDENTITY_FILE
        # Without an identity file the process before was killed before it did anything.
        if not path.is_file() and not self.finished():
            return []
        try:
            found = read_json_object(path)["identity"]
            read_json_object(path)["work"].encode()
        except (InputError, KeyError, TypeError, AttributeError):
            return [IDENTITY_FILE]
        return sorted(
            name for name in found.keys() | self.identity.keys() if found.get(name) != self.identity.get(name)
        )

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


def _shard_hash(number: int, path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes(), seed=number)
