"""Work that is done in shards and survives being killed: finished shards stay on disk beside the output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from mmhf.errors import InputError
from mmhf.files import whole_file, write_json

IDENTITY_FILE = "identity.json"


class ShardFolder:
    """The folder `OUTPUT.partial/` with one parquet file for each finished shard.

    Args:
        output_path (`Path`): The file that the shards will become.
        identity (`Mapping[str, str]`): What decides the result, by name (`input`, `model`, `batch size`, …). Shards
            made under another identity are never mixed in.
    """

    def __init__(self, output_path: Path, identity: Mapping[str, str]) -> None:
        self.output_path = output_path
        self.path = output_path.with_name(f"{output_path.name}.partial")
        self.identity = dict(identity)

    @contextmanager
    def opened(self, *, discard_other: bool) -> Iterator[ShardFolder]:
        """Hold the folder for one process.

        Args:
            discard_other (`bool`): Throw away shards of another identity instead of refusing them.

        Raises:
            InputError: Another process holds the folder, or it has shards of another identity.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._check_identity(discard_other)
                yield self
        except Timeout as error:
            raise InputError(f"{self.output_path}: another process is writing it") from error

    def finished(self) -> set[int]:
        """Numbers of the shards that are done."""
        return {int(path.stem.rpartition("-")[2]) for path in self.path.glob("shard-*.parquet")}

    def write(self, number: int, table: pa.Table) -> None:
        """Store a finished shard, whole or not at all."""
        with whole_file(self._shard_path(number)) as temporary:
            pq.write_table(table, temporary)

    def read(self, numbers: range) -> pa.Table:
        """The shards of these numbers, one below the other."""
        return pa.concat_tables([pq.read_table(self._shard_path(number)) for number in numbers])

    def schema(self, number: int) -> pa.Schema:
        """The columns of a shard."""
        return pq.read_schema(self._shard_path(number))

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def _shard_path(self, number: int) -> Path:
        return self.path / f"shard-{number:06d}.parquet"

    def _check_identity(self, discard_other: bool) -> None:
        path = self.path / IDENTITY_FILE
        # Without an identity file the process before was killed before it did anything.
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self.identity
        changed = sorted(
            name for name in found.keys() | self.identity.keys() if found.get(name) != self.identity.get(name)
        )
        if changed and self.finished() and not discard_other:
            raise InputError(
                f"{self.path}: begun with another {', '.join(changed)}; go back to that, or overwrite to start again"
            )
        if changed:
            for shard in self.path.glob("shard-*"):
                shard.unlink()
        write_json(path, self.identity)
