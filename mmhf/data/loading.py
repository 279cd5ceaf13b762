"""From the recipe's `data` section to the rows of each split."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import datasets

from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicatePair, describe_duplicates, find_duplicates
from mmhf.data.fingerprint import fingerprint_splits
from mmhf.data.screen import CaptionScreen, LabelScreen
from mmhf.data.sources.caption_hub import read_caption_hub
from mmhf.data.sources.caption_shards import read_sharded
from mmhf.data.sources.caption_table import read_caption_table
from mmhf.data.sources.clinical import read_clinical
from mmhf.data.sources.fakeddit import read_fakeddit
from mmhf.data.sources.flickr30k import read_flickr30k
from mmhf.data.sources.hub import read_hub, read_hub_stream
from mmhf.data.sources.image_folder import read_image_folder
from mmhf.data.sources.sample import read_sample_captions, read_sample_groups, read_sample_pairs
from mmhf.data.sources.table import read_table_source
from mmhf.data.streams.captions import StreamedCaptions
from mmhf.data.table import SPLITS, CaptionedSource, FilterStep, SourceData
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import (
    CaptionDataSectionBase,
    CaptionHubSection,
    CaptionSampleSection,
    CaptionTableSection,
    Flickr30kSection,
    WebDatasetSection,
)
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import (
    ClinicalDataSection,
    DataSectionBase,
    FakedditDataSection,
    HubDataSection,
    ImageFolderDataSection,
    SampleDataSection,
    TableDataSection,
)

logger = logging.getLogger(__name__)

_TASKS_WITH_TEXT = ("image-text-classification",)
_TASKS_WITH_LABELS = (*_TASKS_WITH_TEXT, "image-classification")
_TASKS_WITH_CAPTIONS = ("image-captioning", "contrastive")
_TASKS = (*_TASKS_WITH_LABELS, *_TASKS_WITH_CAPTIONS)


@dataclass
class LoadedData:
    """The rows that a recipe trains and evaluates on."""

    splits: dict[str, datasets.Dataset | datasets.IterableDataset | StreamedCaptions]
    """`train`, `validation`, `test` → rows: `row` (number in the source, from 1), `id`, `image` (struct of `path` and
    encoded `bytes`), and `text`, `label` (class id) or `captions` (at least one, none empty)."""
    label_names: list[str]
    """Names of the classes, in the order of their ids; none where rows have captions."""
    bad_examples: list[BadExample] = field(default_factory=list)
    """Rows that were dropped or blanked, and why."""
    duplicates: list[DuplicatePair] = field(default_factory=list)
    """Images that are there twice, those across splits first; empty when they were not looked for."""
    filter_steps: list[FilterStep] = field(default_factory=list)
    """The rows before and behind each of the recipe's filters, over all splits; empty when nothing was filtered."""

    def num_rows(self, split: str) -> int | None:
        """Rows of a split, of a stream those of an epoch; None when it has no length, or is absent."""
        table = self.splits.get(split)
        return len(table) if isinstance(table, datasets.Dataset | StreamedCaptions) else None

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 over the ids, texts, labels and images of each split; see `fingerprint_splits`."""
        return fingerprint_splits(self.splits)


def load_data(
    section: DataSectionBase,
    *,
    task: str = "image-text-classification",
    label_names: Sequence[str] | None = None,
    splits: Collection[str] | None = None,
    check_images: bool = True,
    extra_columns: Sequence[str] = (),
) -> LoadedData:
    """Load the data that a recipe describes.

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
            Columns to keep as strings, each under the name that `extra_column` gives it; for labelled tables.

    Returns:
        `LoadedData`: the splits, the label names and the bad rows.

    Raises:
        InputError: something is missing, a split is empty, a label is unknown, or a row is bad where the recipe says
            to raise.
    """
    if isinstance(section, CaptionDataSectionBase) != (task in _TASKS_WITH_CAPTIONS) or task not in _TASKS:
        raise _wrong_source(section, task)
    wanted = splits
    judge = section if isinstance(section, ImageFolderDataSection | CaptionDataSectionBase) else None
    if judge is not None and judge.on_duplicate == "skip_across_splits":
        splits = None  # what is left of the training split depends on the others
    if isinstance(section, CaptionDataSectionBase):
        loaded = _load_captions(section, splits, check_images=check_images)
    else:
        reading = _Reading(task in _TASKS_WITH_TEXT, tuple(extra_columns))
        loaded = _load_labelled(section, reading, label_names, splits, check_images=check_images)
    if judge is not None:
        _judge_duplicates(loaded, judge, check_images=check_images)
    if wanted is not None:
        loaded.splits = {split: table for split, table in loaded.splits.items() if split in wanted}
        loaded.bad_examples = [example for example in loaded.bad_examples if example.split in wanted]
    return loaded


def _wrong_source(section: DataSectionBase, task: str) -> InputError:
    return InputError(f"task {task!r} cannot be loaded from the source {section.source!r}")


def _load_captions(
    section: CaptionDataSectionBase, splits: Collection[str] | None, *, check_images: bool
) -> LoadedData:
    loaded = LoadedData({}, [])
    if isinstance(section, WebDatasetSection) or (isinstance(section, CaptionHubSection) and section.streaming):
        sharded = read_sharded(section, splits)
        source, loaded.bad_examples = sharded.tables, sharded.bad_examples
        if sharded.streamed is not None:
            loaded.splits["train"] = sharded.streamed
    else:
        source = _read_captions(section, splits)
    for split, rows in source.items():
        screen = CaptionScreen(rows, split, section)
        loaded.splits[split] = screen.run(check_images=check_images)
        loaded.bad_examples += screen.bad_examples
    return loaded


def _read_captions(section: CaptionDataSectionBase, splits: Collection[str] | None) -> CaptionedSource:
    if isinstance(section, CaptionSampleSection):
        return read_sample_captions(section, splits)
    if isinstance(section, Flickr30kSection):
        return read_flickr30k(section, splits)
    if isinstance(section, CaptionTableSection):
        return read_caption_table(section, splits)
    if isinstance(section, CaptionHubSection):
        return read_caption_hub(section, splits)
    raise _wrong_source(section, "image-captioning")


class _Reading(NamedTuple):
    """What of a source's rows is read beside image and label."""

    with_text: bool
    extra_columns: tuple[str, ...]


def _load_labelled(
    section: DataSectionBase,
    reading: _Reading,
    label_names: Sequence[str] | None,
    splits: Collection[str] | None,
    *,
    check_images: bool,
) -> LoadedData:
    with_text = reading.with_text
    if with_text and isinstance(section, ImageFolderDataSection):
        raise _wrong_source(section, _TASKS_WITH_TEXT[0])
    if not with_text:
        section = _without_text(section)
    if isinstance(section, HubDataSection) and section.streaming:
        if reading.extra_columns:
            raise InputError(f"column {reading.extra_columns[0]!r} is asked for, but a stream keeps no columns")
        streams, names = read_hub_stream(section, splits, label_names)
        return LoadedData(dict(streams), names)
    source = _read(section, splits, reading)
    files = ", ".join(dict.fromkeys(rows.origin for rows in source.splits.values()))
    names, label_ids = number_labels(source.label_of, label_names, origin=f"data source {section.source!r} ({files})")
    loaded = LoadedData({}, names, filter_steps=source.filter_steps)
    for split in (name for name in SPLITS if name in source.splits):
        screen = LabelScreen(source.splits[split], split, section, label_ids=label_ids, with_text=with_text)
        loaded.splits[split] = screen.run(check_images=check_images)
        loaded.bad_examples += screen.bad_examples
    return loaded


def number_labels(
    label_of: dict[str, str], label_names: Sequence[str] | None, *, origin: str
) -> tuple[list[str], dict[str, int]]:
    """Give label values their class ids.

    Args:
        label_of (`dict[str, str]`):
            Label value → label name, in the order of the class ids.
        label_names (`Sequence[str]`, *optional*):
            The names that a model has, in its order.
        origin (`str`):
            The data, for messages.

    Returns:
        `tuple[list[str], dict[str, int]]`: names by class id, and label value → class id.

    Raises:
        InputError: the model does not have one of the labels, or there are fewer than two.
    """
    own = list(dict.fromkeys(label_of.values()))
    names = own if label_names is None else list(label_names)
    for name in own:
        if name not in names:
            guess = did_you_mean(nearest_names(name, names))
            raise InputError(f"{origin}: the model has no label {name!r}{guess} (its labels: {', '.join(names)})")
    if len(names) < 2:
        raise InputError(f"{origin}: a classifier needs at least two labels, found {', '.join(names) or 'none'}")
    return names, {value: names.index(name) for value, name in label_of.items()}


def _judge_duplicates(
    loaded: LoadedData, section: ImageFolderDataSection | CaptionDataSectionBase, *, check_images: bool
) -> None:
    skip = section.on_duplicate == "skip_across_splits"
    if section.find_duplicates == "never" or not (skip or check_images):
        return
    tables = {split: table for split, table in loaded.splits.items() if isinstance(table, datasets.Dataset)}
    found = find_duplicates(tables, near=section.find_duplicates == "near")
    loaded.duplicates = found.pairs
    if found.pairs:
        logger.warning("data source %s: %s", section.source, describe_duplicates(found))
    if skip and found.leaks:
        train = tables["train"]
        rows, ids = train["row"][:], train["id"][:]
        loaded.bad_examples += [
            BadExample("train", rows[position], ids[position], f"the image is in {twin.split}, too, as {twin.id}")
            for position, twin in sorted(found.leaks.items())
        ]
        kept = [position for position in range(len(train)) if position not in found.leaks]
        if not kept:
            raise InputError(f"data source {section.source!r}: every training image is in validation or test, too")
        loaded.splits["train"] = train.select(kept)
        logger.warning("data source %s: left %d images out of train", section.source, len(found.leaks))


def _without_text(section: DataSectionBase) -> DataSectionBase:
    if isinstance(section, TableDataSection):
        return section.without_text()
    if isinstance(section, HubDataSection):
        return section.model_copy(update={"columns": section.columns.model_copy(update={"text": None})})
    return section


def _read(section: DataSectionBase, splits: Collection[str] | None, reading: _Reading) -> SourceData:
    if isinstance(section, FakedditDataSection):
        return read_fakeddit(section, splits, extra_columns=reading.extra_columns)
    if isinstance(section, TableDataSection):
        return read_table_source(section, splits, extra_columns=reading.extra_columns)
    if isinstance(section, ClinicalDataSection):
        return read_clinical(section, splits, extra_columns=reading.extra_columns)
    if isinstance(section, HubDataSection):
        return read_hub(section, splits, extra_columns=reading.extra_columns)
    if reading.extra_columns:
        raise InputError(
            f"column {reading.extra_columns[0]!r} is asked for, but data.source {section.source!r} has no columns; "
            "fakeddit, table, clinical and hub have"
        )
    if isinstance(section, SampleDataSection):
        return read_sample_pairs(splits) if reading.with_text else read_sample_groups(splits)
    if isinstance(section, ImageFolderDataSection):
        return read_image_folder(section, splits)
    raise InputError(f"data.source {section.source!r} has no class labels")
