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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from mmhf.errors import InputError
from mmhf.inference.inputs import IMAGE, Example, RowExamples, TableRows, files_hash
from mmhf.inference.loading import choose_device
from mmhf.inference.outputs import open_writer, passed_columns
from mmhf.inference.shards import ShardFolder

logger = logging.getLogger(__name__)

JOB_KEY = b"mmhf.job"
"""Key of a parquet file's metadata that says what it was made from, and what came of it; a CSV file has `.job.json`
beside it."""
ERROR_COLUMN = "error"
EMBEDDING_SUFFIX = "_embedding"
_STATE, _DIGEST, _TALLY = "mmhf.image_state", "mmhf.image_digest", b"mmhf.tally"
_WAIT_FOR_OTHERS = 0.5
_KEPT_REASONS = 100


@dataclass(frozen=True)
class JobSettings:
    """How a model goes over a table.

    Args:
        columns (`Mapping[str, str]`): Names of the columns of `image` and `text`; an image may be a template such as
            `{id}.jpg`. What is absent is taken from the model's recipe, or is `image` and `text`.
        image_root (`str` or `Path`, *optional*): Folder that image paths are relative to and may not leave; absent:
            the table's own.
        limit (`int`, *optional*): The first rows only.
        batch_size (`int`, defaults to 32): Rows per forward pass.
        workers (`int`, defaults to 0): Processes that decode images, for each process of the job.
        device (`str`, *optional*): Absent: the GPU that a launcher meant this process to have, or the accelerator, or
            the CPU.
        overwrite (`bool`, defaults to `False`): Replace an output, and drop unfinished work, made from other inputs.
        shard_rows (`int`, defaults to 1024): Rows after which work is saved, and that one process takes at a time.
        progress (`bool`, defaults to `True`): Show a progress bar.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    image_root: str | Path | None = None
    limit: int | None = None
    batch_size: int = 32
    workers: int = 0
    device: str | None = None
    overwrite: bool = False
    shard_rows: int = 1024
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("workers", 0), ("shard_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected {least} or more")

    def choose_device(self) -> torch.device:
        """Where this process computes.

        Raises:
            InputError: The device is not on this machine.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if self.device is None and accelerator is not None and "LOCAL_RANK" in os.environ:
            return torch.device(accelerator.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
        return choose_device(self.device)

    def facts(self, rows: TableRows, device: torch.device) -> dict[str, str]:
        """What of settings and input decides the numbers of any job."""
        return {
            "input": rows.table_hash,
            "columns": f"{rows.image_column}, {', '.join(rows.text_columns)}",
            "device": device.type,
            "limit": str(self.limit),
            "batch size": str(self.batch_size),
            "shard size": str(self.shard_rows),
        }


@dataclass(frozen=True)
class JobSummary:
    """What came of a job.

    Args:
        output_path (`Path`): The file.
        rows (`int`): Its rows, those of the input.
        rows_here (`int`): Rows that this process did.
        resumed_rows (`int`): Rows that were done before this process began.
        filled (`dict[str, int]`): Rows with a value, by column that was made.
        labels (`dict[str, int]`): Rows by predicted label; empty where no labels are predicted.
        errors (`dict[str, int]`): Rows by the reason in their `error` column.
        seconds (`float`): Duration of this run.
    """

    output_path: Path
    rows: int
    rows_here: int
    resumed_rows: int
    filled: dict[str, int]
    labels: dict[str, int]
    errors: dict[str, int]
    seconds: float

    @property
    def unpredicted(self) -> int:
        """Rows for which nothing was made."""
        return self.rows - max(self.filled.values(), default=0)

    @property
    def embedded(self) -> dict[str, int]:
        """Rows with an embedding, by modality."""
        suffix = EMBEDDING_SUFFIX
        return {name.removesuffix(suffix): count for name, count in self.filled.items() if name.endswith(suffix)}


@dataclass(frozen=True)
class Batch:
    """Rows as tensors.

    Args:
        encodings (`dict[str, dict[str, Tensor]]`): The model's inputs, by what is made of them; none where no row of
            the batch has what it takes.
        counts (`dict[str, list[int]]`): The same names → how many of their inputs belong to each row, 0 for a row
            that lacks what it takes.
        errors (`list[str | None]`): What there is to say of each row.
    """

    encodings: Mapping[str, Mapping[str, torch.Tensor]]
    counts: Mapping[str, list[int]]
    errors: list[str | None]


class RowModel(Protocol):
    """A model that makes columns of rows, each row for itself."""

    @property
    def verb(self) -> str:
        """What it does, for the progress bar."""
        ...

    @property
    def reads(self) -> Sequence[str]:
        """What it reads of a row: `image`, `text` or both."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns that it makes, the first of which is null where nothing could be made."""
        ...

    @property
    def collator(self) -> Callable[[Sequence[Example]], Batch]:
        """Makes tensors of rows. It holds no model, so that data loaders' processes can have it."""
        ...

    def make(self, batch: Batch) -> pa.Table:
        """The columns of a batch's rows, null where a row lacks what they are made of."""
        ...


class TableJob:
    """A model over the rows of a table.

    Args:
        model ([`RowModel`]): What makes the columns.
        rows ([`TableRows`]): What it reads, with the columns that are written beside those it makes.
        output (`Path`): `.parquet`, or `.csv` where no column holds lists.
        identity (`Mapping[str, str]`): What decides the result; work on another one is not gone on with. Images are
            known by their content besides.
        settings ([`JobSettings`]): Batch size and the like.
        metadata (`Mapping[bytes, str]`, *optional*): What a parquet file is to say of itself.
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
        """Do shards until all are done, by whomever; gives the rows done here."""
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
        """Do those of these shards that nobody else works on; gives each batch's rows, and if it ends its shard."""
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
        """Write the output shard by shard, so that it never is in memory as a whole."""
        made = self._made_fields()
        tally, images = self._tally_of_all(), self._images()
        record = {"identity": self.identity, "work": self.shards.work, "tally": tally, **images}
        written = {**self.metadata, JOB_KEY: json.dumps(record)}
        schema = pa.schema([*self.passed.schema, *made], metadata=written)
        temporary, suffix = self.shards.path / self.output.name, self.output.suffix.lower()
        writer = open_writer(temporary, schema, suffix=suffix, defuse_formulas=self.defuse_formulas)
        size = self.settings.shard_rows
        for number in self.numbers:
            table = self.shards.read(number)
            columns = [column.slice(number * size, size) for column in self.passed.columns]
            columns += [table.column(each.name).cast(each.type) for each in made]
            writer.write_table(pa.table(columns, schema=schema))
        writer.close()
        if suffix == ".csv":
            beside = temporary.with_name(f"{temporary.name}.job.json")
            beside.write_text(json.dumps({**record, "output": files_hash([temporary])}), encoding="utf-8")
            beside.replace(_record_beside(self.output))
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
        reasons = totals["errors"].most_common()
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


def read_record(output: Path) -> dict[str, Any] | None:
    """What a job's output was made from (`identity`, hashes of image states and digests) and its `tally`.

    None for a file that no job wrote, or that was changed since.
    """
    if not output.is_file():
        return None
    if output.suffix.lower() == ".parquet":
        try:
            metadata = pq.read_schema(output).metadata or {}
        except (pa.ArrowException, OSError):
            return None
        return json.loads(metadata[JOB_KEY]) if JOB_KEY in metadata else None
    try:
        record = json.loads(_record_beside(output).read_text(encoding="utf-8"))
        return record if record["output"] == files_hash([output]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def refuse_existing(output: Path) -> None:
    """Raise `InputError` if there is a file that no job wrote, before anything is loaded for one that would."""
    if output.exists() and read_record(output) is None:
        raise InputError(f"{output}: exists already; choose another name, or overwrite it")


def place_rows(table: pa.Table, counts: Sequence[int]) -> pa.Table:
    """Put the rows that were made at their places: null where a count is 0, one row where it is 1."""
    made = iter(range(len(table)))
    return table.take(pa.array([next(made) if count else None for count in counts], pa.int64()))


def _record_beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.job.json")


def _tally(table: pa.Table) -> dict[str, dict[str, int]]:
    made = [name for name in table.column_names if name not in (ERROR_COLUMN, _STATE, _DIGEST)]
    labels = table.column("label").drop_null().to_pylist() if "label" in made else []
    return {
        "filled": {name: len(table) - table.column(name).null_count for name in made},
        "labels": dict(Counter(labels)),
        "errors": dict(Counter(table.column(ERROR_COLUMN).drop_null().to_pylist())),
    }


def _hash_of(values: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()
