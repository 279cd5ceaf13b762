"""The source `hub` of images with captions: whatever `datasets.load_dataset` takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import datasets

from mmhf.data.readers import as_text, require_column
from mmhf.data.sources.captioned_images import CaptionedImages, captions_in, keep_splits
from mmhf.data.sources.hub import HubImages, load_hub_splits, match_splits, with_encoded_images
from mmhf.data.table import CaptionedSource
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionHubSection


def read_caption_hub(section: CaptionHubSection, splits: Collection[str] | None = None) -> CaptionedSource:
    """Load a data set.

    Args:
        section (`CaptionHubSection`):
            The data set, its columns and splits.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.

    Returns:
        `dict[str, CaptionedRows]`: a row is an image, or with `columns.id` all rows of the same id; row numbers count
        from 1 in the data set's own split.

    Raises:
        InputError: the data set cannot be loaded, or lacks a column or a split.
    """
    origin = f"data set {section.path}"
    loaded = load_hub_splits(section.path, section.name, revision=section.revision)
    if section.split_column is not None:
        if len(loaded) > 1:
            raise InputError(f"data.split_column: {origin} is split already, into {', '.join(loaded)}")
        source = _read(section, next(iter(loaded.values())), origin).cut_by_name()
    else:
        given = None if section.splits is None else {str(ours): theirs for ours, theirs in section.splits.items()}
        names = match_splits(given, loaded, section.path)
        if section.split is not None:
            if "train" not in names:
                raise InputError(f"{origin}: no split 'train' for data.split to cut; name it in data.splits")
            source = _read(section, loaded[names["train"]], origin).cut(section.split)
        else:
            source = {split: _read(section, loaded[theirs], origin).select() for split, theirs in names.items()}
    return keep_splits(source, splits, origin=origin)


def _read(section: CaptionHubSection, part: datasets.Dataset, origin: str) -> CaptionedImages:
    columns = section.columns
    captions = [columns.captions] if isinstance(columns.captions, str) else columns.captions
    return read_dataset(
        part,
        origin=origin,
        image=columns.image or "image",
        captions=captions,
        id_column=columns.id,
        split_column=section.split_column,
    )


def read_dataset(
    part: datasets.Dataset,
    *,
    origin: str,
    image: str,
    captions: Sequence[str],
    id_column: str | None = None,
    split_column: str | None = None,
) -> CaptionedImages:
    """Read the captions of a data set; its images stay where they are.

    Args:
        part (`datasets.Dataset`):
            A split of it.
        origin (`str`):
            The data set, for messages.
        image (`str`):
            Column of the images.
        captions (`Sequence[str]`):
            Columns of texts or of lists of texts.
        id_column (`str`, *optional*):
            Rows of the same id are one image; absent: each row is one.
        split_column (`str`, *optional*):
            What split a row is in.

    Raises:
        InputError: a column is missing, or holds something else.
    """
    named = [name for name in (image, *captions, id_column, split_column) if name is not None]
    for column in named:
        require_column(origin, column, part.features)
    encoded = with_encoded_images(part, image, origin)
    positions: list[int] = []
    found = CaptionedImages(origin, lambda chosen: HubImages(encoded, image, [positions[place] for place in chosen]))
    texts = part.select_columns([name for name in named if name != image])[:]
    for position in range(len(part)):
        row = position + 1
        name = None if id_column is None else _name(part, id_column, texts[id_column][position])
        split = None if split_column is None else _name(part, split_column, texts[split_column][position])
        try:
            read = [caption for column in captions for caption in captions_in(texts[column][position], row)]
        except ValueError as error:
            found.add_malformed(row, str(error), split=split)
            positions.append(position)
            continue
        if found.add(name, read, row=row, name=name, split=split) is not None:
            positions.append(position)
    return found


def _name(part: datasets.Dataset, column: str, value: Any) -> str | None:
    feature = part.features[column]
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    return as_text(value)
