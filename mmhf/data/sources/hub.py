"""The source `hub`: whatever `datasets.load_dataset` takes, loaded or streamed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets

from mmhf.data.images import find_image_problem
from mmhf.data.readers import as_text, require_column
from mmhf.data.sources.table import sort_labels
from mmhf.data.splits import split_positions
from mmhf.data.table import SPLITS, ImageProblem, LabelledRows, SourceData, column_features
from mmhf.errors import InputError, UnreachableError
from mmhf.recipe.schema import HubDataSection

logger = logging.getLogger(__name__)


class HubImages:
    """Images in a column of a memory-mapped data set, which is never copied.

    Args:
        dataset (`datasets.Dataset`):
            The data set as it was loaded.
        column (`str`):
            Its image column, not decoded.
        positions (`Sequence[int]`):
            The data set's row for each row of the split.
    """

    def __init__(self, dataset: datasets.Dataset, column: str, positions: Sequence[int]) -> None:
        images = dataset.select_columns([column])
        self.images = images if column == "image" else images.rename_column(column, "image")
        self.positions = positions

    def problems(self, positions: Sequence[int], *, read: bool) -> Iterable[ImageProblem | None]:
        """See `ImageColumn`."""
        if not read:
            return [None] * len(positions)
        images = self.images[[self.positions[position] for position in positions]]["image"]
        return [_image_problem(image) for image in images]

    def to_dataset(
        self, positions: Sequence[int], blank: set[int], columns: Mapping[str, list[Any]]
    ) -> datasets.Dataset:
        """See `ImageColumn`; a blank image stays as it is, for the collator to replace."""
        chosen = [self.positions[position] for position in positions]
        table = self.images
        features = column_features(columns)
        # Columns come first and rows are chosen last: adding a column to chosen rows would copy every image.
        for name, values in columns.items():
            full: list[Any] = [None] * len(table)
            for position, value in zip(chosen, values, strict=True):
                full[position] = value
            table = table.add_column(name, full, feature=features[name])
        return table if chosen == list(range(len(table))) else table.select(chosen)


def read_hub(
    section: HubDataSection, splits: Collection[str] | None = None, *, extra_columns: Sequence[str] = ()
) -> SourceData:
    """Load a data set.

    Args:
        section (`HubDataSection`):
            The data set, its columns, splits and labels.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.
        extra_columns (`Sequence[str]`, *optional*):
            Further columns to keep.

    Returns:
        `SourceData`: the rows; row numbers count from 1 in the data set's own split.

    Raises:
        InputError: the data set cannot be loaded, or lacks a column or a split.
    """
    loaded = _load(section)
    parts = _parts(section, loaded)
    for split in splits or ():
        _require_split(section, split, parts)
    kept = {split: part for split, part in parts.items() if splits is None or split in splits}
    label_of = _label_map(section, next(iter(loaded.values())).features)
    if label_of is None:
        values = (value for source, _ in parts.values() for value in _values(source, section.columns.label))
        label_of = {value: value for value in sort_labels(value for value in values if value is not None)}
    return SourceData(
        {split: _rows(section, *kept[split], extra_columns) for split in SPLITS if split in kept}, label_of
    )


def read_hub_stream(
    section: HubDataSection, splits: Collection[str] | None = None, label_names: Sequence[str] | None = None
) -> tuple[dict[str, datasets.IterableDataset], list[str]]:
    """Open a data set as streams; nothing is read ahead, so bad rows are found as they come by.

    Args:
        section (`HubDataSection`):
            The data set, its columns, splits and labels; a `limit` takes the first rows.
        splits (`Collection[str]`, *optional*):
            Splits to open; absent: all.
        label_names (`Sequence[str]`, *optional*):
            The labels of a model; absent: the data set's own, in its order.

    Returns:
        `tuple`: split → stream of rows, and the label names.

    Raises:
        InputError: the data set cannot be opened, lacks a column or a split, or its labels are not known beforehand.
    """
    if section.split is not None:
        raise InputError(
            "data.split: a stream cannot be cut; name its splits in data.splits, or set data.streaming=false"
        )
    loaded = _load(section)
    names = _split_names(section, loaded)
    for split in splits or ():
        _require_split(section, split, names)
    first = next(iter(loaded.values()))
    label_of = _label_map(section, first.features)
    if label_of is None:
        raise InputError("data.labels: a stream's labels must be given, since its rows are not read beforehand")
    own = list(dict.fromkeys(label_of.values()))
    known = own if label_names is None else list(label_names)
    if unknown := [name for name in own if name not in known]:
        raise InputError(f"data set {section.path}: the model has no label {unknown[0]!r} (its labels: {known})")
    ids = {value: known.index(name) for value, name in label_of.items()}
    wanted = [split for split in SPLITS if split in names and (splits is None or split in splits)]
    return {split: _stream(section, loaded[names[split]], ids) for split in wanted}, known


def load_hub_splits(path: str, name: str | None = None, **options: Any) -> Mapping[str, Any]:
    """Load a data set with `datasets.load_dataset`, or open it as streams.

    Args:
        path (`str`):
            A data set repository or folder.
        name (`str`, *optional*):
            Its configuration.
        options (`Any`):
            `revision`, `streaming` and `data_files`, as `load_dataset` takes them.

    Returns:
        `Mapping[str, Any]`: the data set's own splits.

    Raises:
        UnreachableError: the Hub cannot be reached.
        InputError: there is no such data set, or it cannot be read.
    """
    with _loading(path):
        return datasets.load_dataset(path, name, **options)


def load_hub_files(path: str, name: str | None = None, *, revision: str | None = None) -> dict[str, list[str]]:
    """Find the files of a data set without reading them.

    Args:
        path, name, revision (`str`):
            As `load_hub_splits` takes them.

    Returns:
        `dict[str, list[str]]`: the data set's own split → paths or URLs of its files, which fsspec opens.

    Raises:
        UnreachableError: the Hub cannot be reached.
        InputError: there is no such data set, or it has no data files.
    """
    with _loading(path):
        builder = datasets.load_dataset_builder(path, name, revision=revision)
    files = builder.config.data_files
    if not files:
        raise InputError(f"data.path: the data set {path} has no data files to stream")
    return {str(split): [str(file) for file in of_split] for split, of_split in files.items()}


@contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise UnreachableError(f"data.path: cannot reach the data set {path}: {_first_line(error)}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"data.path: cannot load the data set {path}: {_first_line(error)}") from error


def with_encoded_images(part: Any, column: str, origin: str) -> Any:
    """Check that a column of a data set has images, and keep them encoded.

    Args:
        part (`Dataset` or `IterableDataset`):
            A split.
        column (`str`):
            The column.
        origin (`str`):
            The data set, for messages.

    Raises:
        InputError: it has something else.
    """
    feature = part.features[column]
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if not (isinstance(feature, datasets.Image) or is_binary or is_struct):
        raise InputError(f"{origin}: column {column!r} has no images but {feature}")
    return part.cast_column(column, datasets.Image(decode=False))


def _load(section: HubDataSection) -> dict[str, Any]:
    loaded = load_hub_splits(section.path, section.name, revision=section.revision, streaming=section.streaming)
    return {name: _prepare(section, str(name), part) for name, part in loaded.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _prepare(section: HubDataSection, name: str, part: Any) -> Any:
    """Check the columns and keep images encoded."""
    columns = section.columns
    features = part.features
    if features is None:  # a stream of CSV or JSON tells its columns only when it is read
        raise InputError(f"data set {section.path}: its columns are not known beforehand; set data.streaming=false")
    for column in (columns.image, columns.text, columns.label, columns.id):
        if column is not None:
            require_column(f"data set {section.path}, split {name}", column, features)
    return with_encoded_images(part, columns.image, f"data set {section.path}")


def _split_names(section: HubDataSection, loaded: Mapping[str, Any]) -> dict[str, str]:
    given = None if section.splits is None else {str(ours): theirs for ours, theirs in section.splits.items()}
    return match_splits(given, loaded, section.path)


def match_splits(given: Mapping[str, str] | None, available: Collection[str], path: str) -> dict[str, str]:
    """Find the split of a data set that each of ours is.

    Args:
        given (`Mapping[str, str]`, *optional*):
            Our split → the data set's; absent: the splits of the same names.
        available (`Collection[str]`):
            The data set's splits.
        path (`str`):
            The data set, for messages.

    Returns:
        `dict[str, str]`: our split → the data set's.

    Raises:
        InputError: one is not there, or none has one of our names.
    """
    names = {split: split for split in SPLITS if split in available} if given is None else dict(given)
    found = ", ".join(available)
    for theirs in names.values():
        if theirs not in available:
            raise InputError(f"data.splits: {path} has no split {theirs!r}; it has {found}")
    if not names:
        raise InputError(f"data.splits: {path} has the splits {found}; say which is train, validation, test")
    return names


def _require_split(section: HubDataSection, split: str, available: Iterable[str]) -> None:
    if split not in available:
        raise InputError(f"data set {section.path}: no split {split!r}; there is {', '.join(available)}")


def _parts(
    section: HubDataSection, loaded: Mapping[str, datasets.Dataset]
) -> dict[str, tuple[datasets.Dataset, list[int]]]:
    """Our split → the data set it comes from and its rows there."""
    names = _split_names(section, loaded)
    if section.split is None:
        return {split: (loaded[theirs], list(range(len(loaded[theirs])))) for split, theirs in names.items()}
    _require_split(section, "train", names)
    source = loaded[names["train"]]
    group_by = section.split.group_by
    if group_by is not None:
        require_column(f"data set {section.path}", group_by, source.features)
    groups = None if group_by is None else _values(source, group_by)
    cut = split_positions(section.split, _values(source, section.columns.label), groups)
    return {split: (source, positions) for split, positions in cut.items()}


def _values(source: datasets.Dataset, column: str) -> list[str | None]:
    values = source.select_columns([column])[:][column]
    return [_name_of(source.features[column], value) for value in values]


def _name_of(feature: Any, value: Any) -> str | None:
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None  # -1 marks rows without a label
    return as_text(value)


def _label_map(section: HubDataSection, features: datasets.Features) -> dict[str, str] | None:
    if section.labels is not None:
        return dict(section.labels)
    feature = features[section.columns.label]
    return {name: name for name in feature.names} if isinstance(feature, datasets.ClassLabel) else None


def _rows(
    section: HubDataSection, source: datasets.Dataset, positions: list[int], extra_columns: Sequence[str]
) -> LabelledRows:
    columns = section.columns

    def read(column: str) -> list[str | None]:
        require_column(f"data set {section.path}", column, source.features)
        values = _values(source, column)
        return [values[position] for position in positions]

    rows = [position + 1 for position in positions]
    ids: Sequence[str | None] = [None] * len(rows) if columns.id is None else read(columns.id)
    return LabelledRows(
        origin=f"data set {section.path}",
        rows=rows,
        ids=[name or str(row) for name, row in zip(ids, rows, strict=True)],
        texts=[None] * len(rows) if columns.text is None else read(columns.text),
        labels=read(columns.label),
        images=HubImages(source, columns.image, positions),
        extras={name: read(name) for name in extra_columns},
    )


def _image_problem(image: dict[str, Any] | None) -> ImageProblem | None:
    content = None if image is None else image["path"] if image["bytes"] is None else image["bytes"]
    reason = "no image" if content is None else find_image_problem(content)
    return ImageProblem(reason) if reason else None


def _stream(
    section: HubDataSection, source: datasets.IterableDataset, label_ids: dict[str, int]
) -> datasets.IterableDataset:
    if section.limit is not None:
        source = source.take(section.limit)
    usable = source.filter(_usable_row(section, source.features, label_ids))
    columns = section.columns
    label_feature = source.features[columns.label]
    features = datasets.Features(
        {
            "row": datasets.Value("int64"),
            "id": datasets.Value("string"),
            "image": datasets.Image(decode=False),
            "text": datasets.Value("string"),
            "label": datasets.Value("int64"),
        }
    )

    def to_row(example: dict[str, Any], position: int) -> dict[str, Any]:
        name = None if columns.id is None else as_text(example[columns.id])
        return {
            "row": position + 1,
            "id": name or str(position + 1),
            "image": example[columns.image],
            "text": "" if columns.text is None else as_text(example[columns.text]) or "",
            "label": label_ids[_name_of(label_feature, example[columns.label]) or ""],
        }

    unused = [column for column in source.features if column not in features]
    return usable.map(to_row, with_indices=True, remove_columns=unused, features=features)


def _usable_row(
    section: HubDataSection, features: datasets.Features, label_ids: dict[str, int]
) -> Callable[[dict[str, Any]], bool]:
    columns = section.columns
    label_feature = features[columns.label]

    def usable(example: dict[str, Any]) -> bool:
        label = _name_of(label_feature, example[columns.label])
        if label not in label_ids:
            return _judge(f"unknown label {label!r}", "on_bad_row", section.on_bad_row)
        if columns.text is not None and as_text(example[columns.text]) is None:
            return _judge("the text is empty", "on_empty_text", section.on_empty_text)
        return True

    def _judge(reason: str, key: str, policy: str) -> bool:
        if policy == "raise":
            raise InputError(f"data set {section.path}: {reason}; data.{key}=skip goes on without such rows")
        logger.warning("data set %s: %s", section.path, reason)
        return policy in ("blank", "mask")

    return usable
