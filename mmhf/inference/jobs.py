"""The interface of a job over a table: its settings, the model that makes columns, its summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from mmhf.errors import InputError
from mmhf.inference.inputs import Example, TableRows, read_rows
from mmhf.inference.loading import choose_device

EMBEDDING_SUFFIX = "_embedding"


@dataclass(frozen=True)
class JobSettings:
    """Settings of a job over a table.

    Args:
        columns (`Mapping[str, str]`): Names of the columns of `image` and `text`, and of those that the model reads
            besides; an image may be a template such as `{id}.jpg`. Absent ones are taken from the model's recipe, or
            are `image` and `text`.
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

    def read(
        self,
        input_path: str | Path,
        model_dir: str | Path | None,
        *,
        reads: Mapping[str, bool | None],
        captions: bool = False,
        value_columns: Sequence[str] = (),
    ) -> TableRows:
        """`read_rows` of these columns, this folder of images and this many rows."""
        return read_rows(
            input_path,
            model_dir=model_dir,
            columns=self.columns,
            image_root=self.image_root,
            limit=self.limit,
            reads=reads,
            captions=captions,
            value_columns=value_columns,
        )

    def facts(self, rows: TableRows, device: torch.device) -> dict[str, str]:
        """The settings and inputs that the results of any job depend on."""
        values = {"values": str(dict(rows.value_columns))} if rows.value_columns else {}
        return {
            "input": rows.table_hash,
            "columns": f"{rows.image_column}, {', '.join(rows.text_columns)}",
            **values,
            "device": device.type,
            "limit": str(self.limit),
            "batch size": str(self.batch_size),
            "shard size": str(self.shard_rows),
        }


@dataclass(frozen=True)
class JobSummary:
    """The outcome of a job.

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
        errors (`list[str | None]`): An error or a note for each row.
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
        """What it reads of a row: `image`, `text`, `columns`."""
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


def place_rows(table: pa.Table, counts: Sequence[int]) -> pa.Table:
    """Put the rows that were made at their places: null where a count is 0, one row where it is 1."""
    made = iter(range(len(table)))
    return table.take(pa.array([next(made) if count else None for count in counts], pa.int64()))
