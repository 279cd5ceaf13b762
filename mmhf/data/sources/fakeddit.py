"""The source `fakeddit`: Fakeddit's own TSV files and image folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mmhf.data.readers import TableFile, as_text, read_table
from mmhf.data.remote.images import image_files
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.table import SPLITS, LabelledRows, SourceData
from mmhf.errors import InputError
from mmhf.recipe.schema import FakedditDataSection

FILES = {
    "train": "multimodal_train.tsv",
    "validation": "multimodal_validate.tsv",
    "test": "multimodal_test_public.tsv",
}
IMAGE_FOLDERS = ("public_image_set", "images")
# 2-way: 1 is true. The 6-way order is the one the data set's author gave; other code orders the names otherwise.
LABEL_NAMES = {
    "2_way_label": ("fake", "true"),
    "3_way_label": ("true", "fake with true text", "fake with false text"),
    "6_way_label": (
        "true",
        "satire",
        "false connection",
        "imposter content",
        "manipulated content",
        "misleading content",
    ),
}


def read_fakeddit(
    section: FakedditDataSection, splits: Collection[str] | None = None, *, extra_columns: Sequence[str] = ()
) -> SourceData:
    """Read Fakeddit's tables.

    Ids are strings whatever they look like, an index column that pandas left behind is ignored, and `subreddit`, which
    gives the label away, is not read.

    Args:
        section (`FakedditDataSection`):
            Where the data is, which label and which text.
        splits (`Collection[str]`, *optional*):
            Splits to read; absent: those whose file is there.
        extra_columns (`Sequence[str]`, *optional*):
            Further columns to keep.

    Returns:
        `SourceData`: the rows; one whose `hasImage` is False counts as having a bad image.

    Raises:
        InputError: the folder, a file or a column is missing.
    """
    folder = data_path(section.path, section.cloud)
    if not folder.is_dir():
        raise InputError(f"data.path: no such folder: {folder}")
    wanted = splits if splits is not None else [split for split in SPLITS if (folder / FILES[split]).exists()]
    if not wanted:
        raise InputError(f"data.path: {folder} has none of {', '.join(FILES.values())}")
    images = _image_folder(section, folder)
    columns = ["id", section.text, section.label, *extra_columns]
    tables = {
        split: read_table(folder / FILES[split], columns, optional=["hasImage"]) for split in SPLITS if split in wanted
    }
    names = LABEL_NAMES[section.label]
    return SourceData(
        splits={split: _rows(table, section, images, extra_columns) for split, table in tables.items()},
        label_of={str(number): name for number, name in enumerate(names)},
    )


def _image_folder(section: FakedditDataSection, folder: AnyPath) -> AnyPath:
    candidates = IMAGE_FOLDERS if section.image_dir is None else (section.image_dir,)
    for name in candidates:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder}: no image folder {' or '.join(candidates)}; data.image_dir names it")


def _rows(
    table: TableFile, section: FakedditDataSection, images: AnyPath, extra_columns: Sequence[str]
) -> LabelledRows:
    ids = table.columns["id"]
    malformed = dict(table.malformed)
    for position, name in enumerate(ids):
        if name is None:
            malformed.setdefault(position, "the id is missing")
    return LabelledRows(
        origin=table.origin,
        rows=table.rows,
        ids=[name or str(row) for name, row in zip(ids, table.rows, strict=True)],
        texts=table.columns[section.text],
        labels=[_whole_number(label) for label in table.columns[section.label]],
        images=image_files(images, [name and f"{name}.jpg" for name in ids]),
        malformed=malformed,
        extras={name: [as_text(value) for value in table.columns[name]] for name in extra_columns},
        without_image={
            position: "hasImage is False"
            for position, value in enumerate(table.columns["hasImage"])
            if value is not None and value.strip().lower() == "false"
        },
    )


def _whole_number(label: str | None) -> str | None:
    """Read `1.0`, which pandas writes into a column that has gaps, as `1`."""
    return label if label is None else label.strip().removesuffix(".0")
