"""A model over a table: one resumable job, which any number of processes and machines share.

The rows are cut into shards of fixed rows and fixed batches, so that the result does not depend on who did which. A
process claims a shard, makes its columns and stores them in `OUTPUT.partial/`; whoever finds all of them done writes
the output. Killed at any moment and started again, the job goes on with the shards that are left.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from mmhf.cpu import keep_freed_memory
from mmhf.damage import content_hash
from mmhf.errors import InputError
from mmhf.files import write_json
from mmhf.inference.inputs import IMAGE, Example, RowExamples, TableRows
from mmhf.inference.jobs import Batch, JobSettings, JobSummary, RowModel
from mmhf.inference.outputs import open_writer, passed_columns, read_record, record_path, refuse_existing, sealed
from mmhf.inference.shards import ShardFolder

logger = logging.getLogger(__name__)

ERROR_COLUMN = "error"
_STATE, _DIGEST, _TALLY = "mmhf.image_state", "mmhf.image_digest", b"mmhf.tally"
_WAIT_FOR_OTHERS = 0.5
_KEPT_REASONS = 100
_TOLD_ONE_BY_ONE = 3
"""Reasons of a kind, which differ in what they name, such as a path; of more, one is told."""


class TableJob:
    """A model over the rows of a table.

    Args:
        model ([`RowModel`]): What makes the columns.
        rows ([`TableRows`]): What it reads, with the columns that are written beside those it makes.
        output (`Path`): `.parquet`, or `.csv` where no column holds lists.
        identity (`Mapping[str, str]`): What decides the result; work on another one is not gone on with. Images are
            known by their content besides.
        settings ([`JobSettings`]): Batch size and the like.
        metadata (`Mapping[bytes, str]`, *optional*): Metadata of a parquet file.
        defuse_formulas (`bool`, defaults to `False`): CSV only: see [`CsvWriter`].
    """

    def __init__(
        self,
        model: RowModel,
        rows: TableRows,
        output: Path,
        *,
        identity: Mapping[str, str],
        settings: JobSettings,
        metadata: Mapping[bytes, str] | None = None,
        defuse_formulas: bool = False,
    ) -> None:
        self.model, self.rows, self.output, self.settings = model, rows, output, settings
        self.identity, self.metadata = dict(identity), dict(metadata or {})
        self.defuse_formulas = defuse_formulas
        self.numbers = range(-(-len(rows) // settings.shard_rows))
        self.shards = ShardFolder(
            output, self.identity, is_complete=self._is_written, find_change=self._find_changed_image
        )
        made = [*model.columns, ERROR_COLUMN]
        # Before any row is predicted: a column that cannot be written must not cost the work.
        self.passed = passed_columns(rows.table.columns, made, nested=output.suffix.lower() == ".parquet")

    def run(self) -> JobSummary:
        """Do what is left to do, and write the output.

        Raises:
            InputError: The output exists, or was begun, and was made from other inputs.
        """
        keep_freed_memory()
        started, rows_here, resumed = time.monotonic(), 0, len(self.rows)
        is_done = self._is_done()
        if self.output.exists() and not self.settings.overwrite and not is_done:
            refuse_existing(self.output)
            raise InputError(
                f"{self.output}: exists and was made from other inputs; choose another name, or overwrite it"
            )
        if is_done:
            self.shards.tidy()
        else:
            with self.shards.joined(discard_other=self.settings.overwrite):
                resumed = self._rows_in(self.shards.finished())
                if resumed:
                    logger.info("%s: going on after %d of %d rows", self.output, resumed, len(self.rows))
                rows_here = self._fill()
                with self.shards.assembling():
                    if not self._is_written():
                        self._assemble()
        record = read_record(self.output)
        if record is None:
            raise InputError(f"{self.output}: was written, and removed or changed by something else since")
        seconds = time.monotonic() - started
        return JobSummary(self.output, len(self.rows), rows_here, resumed, seconds=seconds, **record["tally"])

    def _is_done(self) -> bool:
        """Whether the output is what this job would write."""
        record = read_record(self.output)
        if record is None or record["identity"] != self.identity:
            return False
        indices = range(len(self.rows))
        is_same: bool = record["image states"] == _hash_of(map(self.rows.image_state, indices)) or (
            record["image digests"] == _hash_of(map(self.rows.image_digest, indices))
        )
        return is_same

    def _is_written(self) -> bool:
        """Whether somebody has written the output from the shards."""
        record = read_record(self.output)
        return record is not None and record["work"] == self.shards.work

    def _find_changed_image(self, shards: ShardFolder) -> str | None:
        for number in sorted(shards.finished()):
            seen = shards.read(number, [_STATE, _DIGEST])
            start = number * self.settings.shard_rows
            for index, row in enumerate(seen.to_pylist(), start):
                if self.rows.image_state(index) != row[_STATE] and self.rows.image_digest(index) != row[_DIGEST]:
                    return f"content of images, such as that of row {self.rows.table.rows[index]}"
        return None

    def _rows_in(self, numbers: set[int]) -> int:
        size = self.settings.shard_rows
        return sum(min(size, len(self.rows) - number * size) for number in numbers)

    def _fill(self) -> int:
        """Work on shards until all are done, here or elsewhere; returns the number of rows done here."""
        rows_here = 0
        columns = (TextColumn(self.model.verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.settings.progress and os.environ.get("LOCAL_RANK", "0") == "0"
        with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
            bar = progress.add_task("rows", total=len(self.rows))
            while todo := sorted(set(self.numbers) - self.shards.finished()):
                done = 0
                progress.update(bar, completed=self._rows_in(self.shards.finished()))
                for rows, ends_shard in self._do_shards(todo):
                    done += rows
                    progress.advance(bar, rows)
                    if ends_shard:  # others have got on, too
                        progress.update(bar, completed=self._rows_in(self.shards.finished()))
                rows_here += done
                if not done:
                    time.sleep(_WAIT_FOR_OTHERS)
            progress.update(bar, completed=len(self.rows))
        return rows_here

    def _do_shards(self, todo: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Work on unclaimed shards; yields the number of rows of each batch, and whether it ends its shard."""
        claims: deque[tuple[int, FileLock, int]] = deque()
        """(shard, its lock, its batches), oldest first."""
        loader = DataLoader(
            RowExamples(self.rows, with_image=IMAGE in self.model.reads),
            batch_sampler=_ClaimedBatches(self, todo, claims),
            collate_fn=_Collate(self.model.collator),
            num_workers=self.settings.workers,
        )
        pending: list[pa.Table] = []
        try:
            for batch, states, digests in loader:
                made = self.model.make(batch).append_column(ERROR_COLUMN, pa.array(batch.errors, pa.string()))
                made = made.append_column(_STATE, pa.array(states, pa.string()))
                pending.append(made.append_column(_DIGEST, pa.array(digests, pa.string())))
                number, lock, batches = claims[0]
                is_last = len(pending) == batches
                if is_last:
                    table = pa.concat_tables(pending, promote_options="default")
                    self.shards.write(number, table.replace_schema_metadata({_TALLY: json.dumps(_tally(table))}))
                    claims.popleft()
                    lock.release()
                    pending = []
                yield len(made), is_last
        finally:
            for _, lock, _ in claims:
                lock.release()

    def _assemble(self) -> None:
        """Write the output shard by shard, so that it is never in memory as a whole."""
        made = self._made_fields()
        tally, images = self._tally_of_all(), self._images()
        record = {"identity": self.identity, "work": self.shards.work, "tally": tally, **images}
        schema = pa.schema([*self.passed.schema, *made], metadata=self.metadata)
        temporary, suffix = self.shards.path / self.output.name, self.output.suffix.lower()
        writer = open_writer(temporary, schema, suffix=suffix, defuse_formulas=self.defuse_formulas)
        size = self.settings.shard_rows
        for number in self.numbers:
            table = self.shards.read(number)
            columns = [column.slice(number * size, size) for column in self.passed.columns]
            columns += [table.column(each.name).cast(each.type) for each in made]
            writer.write_table(pa.table(columns, schema=schema))
        writer.close()
        record["output"] = content_hash(temporary)
        write_json(record_path(self.output), sealed(record))
        temporary.replace(self.output)

    def _made_fields(self) -> list[pa.Field]:
        """The columns that were made; a shard in which nothing could be embedded does not know the width."""
        kinds: dict[str, pa.DataType] = {}
        for number in self.numbers:
            for each in self.shards.schema(number):
                if pa.types.is_null(kinds.get(each.name, pa.null())):
                    kinds[each.name] = each.type
        unknown = pa.list_(pa.float32())
        names = [*self.model.columns, ERROR_COLUMN]
        return [pa.field(name, unknown if pa.types.is_null(kinds[name]) else kinds[name]) for name in names]

    def _tally_of_all(self) -> dict[str, dict[str, int]]:
        totals: dict[str, Counter[str]] = {"filled": Counter(), "labels": Counter(), "errors": Counter()}
        for number in self.numbers:
            for kind, counts in json.loads((self.shards.schema(number).metadata or {})[_TALLY]).items():
                totals[kind].update(counts)
        reasons = reasons_by_kind(totals["errors"]).most_common()
        if len(reasons) > _KEPT_REASONS:
            rest = sum(count for _, count in reasons[_KEPT_REASONS:])
            totals["errors"] = Counter({**dict(reasons[:_KEPT_REASONS]), "other reasons, each in few rows": rest})
        return {kind: dict(counts) for kind, counts in totals.items()}

    def _images(self) -> dict[str, str]:
        seen = [self.shards.read(number, [_STATE, _DIGEST]) for number in self.numbers]
        names = {"image states": _STATE, "image digests": _DIGEST}
        return {
            key: _hash_of(value for table in seen for value in table.column(name).to_pylist())
            for key, name in names.items()
        }


@dataclass(frozen=True)
class _Collate:
    collator: Callable[[Sequence[Example]], Batch]

    def __call__(self, examples: Sequence[Example]) -> tuple[Batch, list[str], list[str]]:
        return self.collator(examples), [each.state for each in examples], [each.digest for each in examples]


class _ClaimedBatches:
    """Row indices of batches of the shards that this process could claim, claimed when they are needed."""

    def __init__(self, job: TableJob, todo: Sequence[int], claims: deque[tuple[int, FileLock, int]]) -> None:
        self.job, self.todo, self.claims = job, todo, claims

    def __iter__(self) -> Iterator[list[int]]:
        settings = self.job.settings
        for number in self.todo:
            lock = self.job.shards.claim(number)
            if lock is None:
                continue
            start = number * settings.shard_rows
            indices = list(range(start, min(start + settings.shard_rows, len(self.job.rows))))
            size = settings.batch_size
            batches = [indices[first : first + size] for first in range(0, len(indices), size)]
            self.claims.append((number, lock, len(batches)))
            yield from batches


def _tally(table: pa.Table) -> dict[str, dict[str, int]]:
    made = [name for name in table.column_names if name not in (ERROR_COLUMN, _STATE, _DIGEST)]
    labels = table.column("label").drop_null().to_pylist() if "label" in made else []
    if "labels" in made:
        labels = pa.compute.list_flatten(table.column("labels")).to_pylist()
    return {
        "filled": {name: len(table) - table.column(name).null_count for name in made},
        "labels": dict(Counter(labels)),
        "errors": dict(Counter(table.column(ERROR_COLUMN).drop_null().to_pylist())),
    }


def reasons_by_kind(reasons: Mapping[str, int]) -> Counter[str]:
    """Reasons and their rows; many that differ behind their first colon only are told as one of them."""
    kinds: dict[str, Counter[str]] = {}
    for reason, count in reasons.items():
        kinds.setdefault(reason.partition(": ")[0], Counter())[reason] += count
    found: Counter[str] = Counter()
    for alike in kinds.values():
        if len(alike) <= _TOLD_ONE_BY_ONE:
            found.update(alike)
        else:
            found[f"{max(alike, key=alike.__getitem__)} ({len(alike) - 1:,} more like it)"] = alike.total()
    return found


def _hash_of(values: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()
