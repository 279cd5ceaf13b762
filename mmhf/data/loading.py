"""From the recipe's `data` section to the rows of each split."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicatePair, describe_duplicates, find_duplicates
from mmhf.data.filters import blank_placeholders, filter_rows
from mmhf.data.folds import POOLED, named_by_split, take_fold
from mmhf.data.label_sets import fixed_size_lists
from mmhf.data.labels import number_labels
from mmhf.data.numbers import number_columns
from mmhf.data.prepared import open_prepared
from mmhf.data.remote.images import parse_reference
from mmhf.data.screen import SplitScreen
from mmhf.data.sources import READERS
from mmhf.data.splits import cut_splits, group_column, require_groups_apart
from mmhf.data.streams.captions import StreamedCaptions
from mmhf.data.table import SPLITS, FilterStep, Reading, SourceTable, as_dataset, extra_column
from mmhf.data.targets import row_target
from mmhf.errors import InputError
from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.caption_data_sections import CaptionDataSectionBase
from mmhf.recipe.data_sections import DataSectionBase, FilteredDataSection, TableDataSection
from mmhf.recipe.row_sections import SplitSection
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.target_sections import RegressionSection

logger = logging.getLogger(__name__)


@dataclass
class LoadedData:
    """The rows that a recipe trains and evaluates on."""

    splits: dict[str, datasets.Dataset | datasets.IterableDataset | StreamedCaptions]
    """`train`, `validation`, `test` → rows: `row` (number in the source, from 1), `id`, `image` (struct of `path` and
    encoded `bytes`), and `text`, and `label` (class id), `labels` (0 or 1 for each), `numbers` or `captions` (at
    least one, none empty)."""
    label_names: list[str]
    """Names of the classes, in the order of their ids, or of the numbers; none where rows have captions."""
    bad_examples: list[BadExample] = field(default_factory=list)
    """Rows that were dropped or blanked, and why."""
    duplicates: list[DuplicatePair] = field(default_factory=list)
    """Duplicate images, those across splits first; empty if none were looked for."""
    empty_texts: dict[str, int] = field(default_factory=dict)
    """Split → rows without a text that are used, where the recipe lets texts be empty; streams are not counted."""
    filter_steps: list[FilterStep] = field(default_factory=list)
    """The rows before and after each of the recipe's filters, over all splits; empty without filters."""
    read_columns: list[str] = field(default_factory=list)
    """Columns of the rows that the model reads beside image and text."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Those of splits of which they are known beforehand."""

    def tables(self) -> dict[str, datasets.Dataset]:
        """The splits that are no streams."""
        return {split: table for split, table in self.splits.items() if isinstance(table, datasets.Dataset)}

    def num_rows(self, split: str) -> int | None:
        """Rows of a split, of a stream those of an epoch; None when it has no length, or is absent."""
        table = self.splits.get(split)
        return len(table) if isinstance(table, datasets.Dataset | StreamedCaptions) else None

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 over the rows of each split, or `"streamed"` for a stream, which is not read for this.

        Ids, texts, labels, captions, columns that the model reads, and the bytes of embedded images count; of image
        files the name and size, so that the same data in another folder has the same hash.
        """
        return {
            split: self.fingerprints.get(split)
            or (_fingerprint(table, self.read_columns) if isinstance(table, datasets.Dataset) else "streamed")
            for split, table in self.splits.items()
        }


def load_data(
    section: DataSectionBase,
    *,
    task: str = "image-text-classification",
    label_names: Sequence[str] | None = None,
    splits: Collection[str] | None = None,
    check_images: bool = True,
    extra_columns: Sequence[str] = (),
    required_columns: Sequence[str] = (),
) -> LoadedData:
    """Load the data that a recipe describes, from the source or from what `mmhf prepare` made of it.

    Args:
        section (`DataSectionBase`):
            The recipe's `data` section.
        task (`str`, defaults to `"image-text-classification"`):
            What the rows are for. In `"image-classification"` no text is read or judged, and `text` is empty; the
            source `sample` then gives drawings and their groups.
        label_names (`Sequence[str]`, *optional*):
            The labels of a model, in the order of its class ids; those of the data are mapped onto them by name.
        splits (`Collection[str]`, *optional*):
            Splits to load; absent: all that the data has.
        check_images (`bool`, defaults to `True`):
            Look into local images beforehand to find broken ones; otherwise they are found when they are decoded.
        extra_columns (`Sequence[str]`, *optional*):
            Columns to keep as strings, each under the name that `extra_column` gives it.
        required_columns (`Sequence[str]`, *optional*):
            Those of them without which a row with captions is as bad as one without a caption.

    Returns:
        `LoadedData`: the splits, the label names and the bad rows.

    Raises:
        InputError: something is missing, a split is empty, a label is unknown, or a row is bad where the recipe says
            to raise.
    """
    recipe = _checked(section, task, splits)
    wanted = splits
    if section.on_duplicate == "skip_across_splits" or section.fold is not None:
        splits = None  # what is left of the training split depends on the others, and a fold on two of them
    reading = Reading(
        label=recipe.reads_labels,
        text=recipe.reads_texts,
        extra_columns=tuple(extra_columns),
        required_columns=tuple(required_columns),
        splits=None if splits is None else frozenset(splits),
    )
    if section.prepared is not None:
        loaded = _load_prepared(section, reading, label_names)
    else:
        if not reading.text and isinstance(section, TableDataSection):
            section = section.without_text()
        source = READERS[type(section)](section, reading)
        loaded = _make_splits(source, section, reading, splits, label_names, check_images=check_images)
        _judge_duplicates(loaded, section, check_images=check_images)
    if wanted is not None:
        loaded.splits = {split: table for split, table in loaded.splits.items() if split in wanted}
        if section.fold is not None and not {*POOLED}.isdisjoint(wanted):
            wanted = {*wanted, *POOLED}  # rows that cannot be used are named by the split that they come from
        loaded.bad_examples = [example for example in loaded.bad_examples if example.split in wanted]
    if reading.text and reading.label and section.may_have_empty_texts():
        loaded.empty_texts = _count_empty_texts(loaded.splits)
    return loaded


def _checked(section: DataSectionBase, task: str, splits: Collection[str] | None) -> type[RecipeBase]:
    """The recipe class of a task, which must be able to read this source and these splits."""
    recipe = RECIPE_BY_TASK.get(task)
    reads_captions = isinstance(section, CaptionDataSectionBase)
    has_texts = all(each.has_texts for each in section.of_one_source())
    if recipe is None or reads_captions == recipe.reads_labels or (recipe.reads_texts and not has_texts):
        raise InputError(f"task {task!r} cannot be loaded from the source {section.source!r}")
    for split in splits or ():
        if split not in SPLITS:
            raise InputError(f"no split {split!r}; a split is one of {', '.join(SPLITS)}")
    return recipe


def _count_empty_texts(splits: Mapping[str, object]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for split, table in splits.items():
        if isinstance(table, datasets.Dataset):
            texts = table.select_columns("text").with_format("arrow")[:]["text"]
            counts[split] = pc.sum(pc.equal(texts, "")).as_py() or 0
    return {split: count for split, count in counts.items() if count}


def _load_prepared(section: DataSectionBase, reading: Reading, label_names: Sequence[str] | None) -> LoadedData:
    """The rows of a prepared folder, with the class ids of a model."""
    folder = open_prepared(section, reading)
    for split in reading.splits or ():
        if split not in folder.splits:
            raise InputError(f"{folder.path}: no split {split!r}; there is {', '.join(folder.splits)}")
    own: list[str] = folder.facts["label_names"]
    read = folder.splits if reading.splits is None else reading.splits
    loaded = LoadedData(
        {split: folder.table(split) for split in folder.splits},
        own,
        folder.bad_examples,
        duplicates=[pair for pair in folder.duplicates if {pair.first.split, pair.second.split} <= set(read)],
        filter_steps=folder.filter_steps,
        fingerprints=dict(folder.origin.rows),
    )
    if reading.label:
        if isinstance(section.target, RegressionSection):
            loaded.label_names = own if label_names is None else list(label_names)
            ids = number_columns(own, label_names, origin=str(folder.path))
        else:
            named = {name: name for name in own}
            loaded.label_names, ids = number_labels(named, label_names, origin=str(folder.path))
        if [ids[name] for name in own] != list(range(len(loaded.label_names))):
            numbers = np.array([ids[name] for name in own])
            loaded.splits = {
                split: _with_labels(folder.table(split), numbers, len(loaded.label_names)) for split in folder.splits
            }
            loaded.fingerprints = {}
    return loaded


def _with_labels(table: datasets.Dataset, numbers: NDArray[np.int64], count: int) -> datasets.Dataset:
    """The rows with other class ids: those of a model that has `count` classes."""
    name = next(name for name in ("label", "labels", "numbers") if name in table.column_names)
    column = table.data.column(name).combine_chunks()
    if name == "label":
        ids: pa.Array = pa.array(numbers).take(column)
    else:
        given = column.flatten().to_numpy().reshape(len(column), -1)
        matrix = np.zeros((len(column), count), dtype=given.dtype)
        matrix[:, numbers] = given
        ids = fixed_size_lists(matrix)
    labels = as_dataset(pa.table({name: ids}))
    others = table.remove_columns(name)
    return datasets.concatenate_datasets([others, labels], axis=1).select_columns(table.column_names)


def _make_splits(
    source: SourceTable,
    section: DataSectionBase,
    reading: Reading,
    splits: Collection[str] | None,
    label_names: Sequence[str] | None,
    *,
    check_images: bool,
) -> LoadedData:
    """Filter, cut, number the labels, and judge the rows of each split that is wanted."""
    positions = np.arange(len(source.rows)) if source.used is None else source.used
    table = source.rows.remove_columns("image").data.table
    blanked = blank_placeholders(table, section.missing, keep=["split", "fault", "id", "image_group"])
    target = row_target(section) if reading.label else None
    if target is not None:
        blanked = target.unify(blanked, source)
    if section.fold is not None:
        blanked = named_by_split(blanked)
    if blanked is not table:
        image = source.rows.select_columns("image")
        source.rows = datasets.concatenate_datasets([image, as_dataset(blanked)], axis=1)
    if source.used is not None:
        blanked = blanked.take(pa.array(positions))
    merged = source.label_of if getattr(section, "labels", None) else None
    kept, steps = filter_rows(blanked, section.filters, origin=source.origin(), label_of=merged)
    positions = positions[kept]
    parts = cut_splits(source, positions)
    available = [split for split in SPLITS if split in parts or split in source.streams]
    for split in splits or ():
        if split not in available:
            raise InputError(f"{source.origin()}: no split {split!r}; there is {', '.join(available)}")
    names: list[str] = []
    if target is not None:
        if isinstance(section, FilteredDataSection) and source.cut is None and section.split.group_by is not None:
            require_groups_apart(source, parts, section.split.group_by)
        names = target.number(source, positions, parts, label_names)
    loaded = LoadedData({}, names, list(source.bad_examples), filter_steps=steps)
    rules = source.cut or getattr(section, "split", None) or SplitSection()
    groups = None if section.fold is None else group_column(source, rules)
    for split in available:
        if splits is not None and split not in splits:
            continue
        if split in source.streams:
            loaded.splits[split] = source.streams[split]({} if target is None else target.label_ids)
            continue
        screen = SplitScreen(source, parts[split], split=split, section=section, reading=reading, target=target)
        loaded.splits[split] = screen.run(check_images=check_images, groups=groups)
        loaded.bad_examples += screen.bad_examples
    if section.fold is not None:
        loaded.splits = {**take_fold(loaded.tables(), section.fold, rules, names)}
    return loaded


def _judge_duplicates(loaded: LoadedData, section: DataSectionBase, *, check_images: bool) -> None:
    skip = section.on_duplicate == "skip_across_splits"
    if section.find_duplicates == "never" or not (skip or check_images):
        return
    tables = loaded.tables()
    found = find_duplicates(tables, near=section.find_duplicates == "near")
    loaded.duplicates = found.pairs
    if found.pairs:
        logger.warning("data source %s: %s", section.source, describe_duplicates(found))
    if skip and found.leaks:
        train = tables["train"]
        leaks = sorted(found.leaks)
        left_out = train.select_columns(["row", "id"])[leaks]
        loaded.bad_examples += [
            BadExample("train", row, name, f"the image is in {twin.split}, too, as {twin.id}")
            for row, name, twin in zip(
                left_out["row"], left_out["id"], (found.leaks[position] for position in leaks), strict=True
            )
        ]
        kept = np.setdiff1d(np.arange(len(train)), leaks)
        if not len(kept):
            raise InputError(f"data source {section.source!r}: every training image is in validation or test, too")
        loaded.splits["train"] = train.select(kept)
        logger.warning("data source %s: left %d images out of train", section.source, len(found.leaks))


def _fingerprint(table: datasets.Dataset, read_columns: Sequence[str]) -> str:
    digest = hashlib.sha256()
    columns = [name for name in ("text", "label", "labels", "numbers", "captions") if name in table.column_names]
    columns += map(extra_column, read_columns)
    stored = table.with_format("arrow")  # images behind URLs would be fetched otherwise
    for batch in stored.iter(1024):
        values: dict[str, list[Any]] = batch.to_pydict()
        for name, image, *said in zip(values["id"], values["image"], *(values[key] for key in columns), strict=True):
            digest.update(json.dumps([name, *said, _image_key(image)]).encode())
    return digest.hexdigest()


def _image_key(image: Mapping[str, str | bytes | None]) -> list[str | int] | None:
    content, path = image["bytes"], image["path"]
    if isinstance(content, bytes):
        return [hashlib.sha256(content).hexdigest()]
    if path is None:
        return None
    if "://" in str(path):
        url, file = parse_reference(str(path))
        return [posixpath.basename(url), file.size] if file is not None and file.size is not None else [url]
    return [os.path.basename(str(path)), os.stat(path).st_size]
