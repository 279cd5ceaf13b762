"""The source `fakeddit`: Fakeddit's own TSV files and image folder."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.columns import image_array
from mmhf.data.readers import read_batches
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.sources.table import Roles, images_below, read_roles
from mmhf.data.table import SPLITS, Part, Reading, SourceTable, make_rows
from mmhf.data.targets import row_target
from mmhf.errors import InputError
from mmhf.recipe.data_sections import FakedditDataSection

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
_HAS_IMAGE = "hasImage"


def read_fakeddit(section: FakedditDataSection, reading: Reading) -> SourceTable:
    """Read Fakeddit's tables.

    Ids are strings whatever they look like, an index column that pandas left behind is ignored, and `subreddit`, which
    gives the label away, is not read.

    Args:
        section (`FakedditDataSection`):
            Where the data is, which label and which text.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: the rows of the wanted splits, or of those whose file is there; one whose `hasImage` is False
        has a bad image.

    Raises:
        InputError: the folder, a file or a column is missing.
    """
    folder = data_path(section.path, section.cloud)
    if not folder.is_dir():
        raise InputError(f"data.path: no such folder: {folder}")
    wanted = reading.splits or [split for split in SPLITS if (folder / FILES[split]).exists()]
    if not wanted:
        raise InputError(f"data.path: {folder} has none of {', '.join(FILES.values())}")
    root = _image_folder(section, folder)
    extra = [*section.filters.columns(), *reading.extra_columns]
    roles = Roles("id", section.label, section.text, id="id", extra=extra, target=row_target(section))
    tables: list[pa.Table] = []
    parts: dict[str | None, Part] = {}
    for split in SPLITS:
        if split not in wanted:
            continue
        path = folder / FILES[split]
        batches = read_batches(path, roles.named(), optional=[_HAS_IMAGE])
        table = read_roles(batches, roles, split)
        has_image = pa.chunked_array([batch.columns[_HAS_IMAGE] for batch in batches], pa.string())
        tables.append(_with_images(table, has_image))
        parts[split] = Part(
            str(path), images_below(root, tables[-1].column("image"), follow_links=section.follow_links)
        )
    rows = pa.concat_tables(tables)
    names = {str(number): name for number, name in enumerate(LABEL_NAMES[section.label])}
    return SourceTable(make_rows({name: rows.column(name) for name in rows.column_names}), parts, names)


def _image_folder(section: FakedditDataSection, folder: AnyPath) -> AnyPath:
    candidates = IMAGE_FOLDERS if section.image_dir is None else (section.image_dir,)
    for name in candidates:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder}: no image folder {' or '.join(candidates)}; data.image_dir names it")


def _with_images(table: pa.Table, has_image: pa.ChunkedArray) -> pa.Table:
    """Name the images after the ids, and read `1.0`, which pandas writes into a column that has gaps, as `1`."""
    ids = pc.struct_field(table.column("image").combine_chunks(), "path")
    says_no = pc.equal(pc.utf8_lower(pc.utf8_trim_whitespace(has_image)), "false")
    no_id = pc.if_else(pc.is_null(ids), "the id is missing", None)
    changed = {
        "image": image_array(pc.binary_join_element_wise(ids, "", ".jpg")),
        "label": pc.replace_substring_regex(table.column("label"), r"\.0$", ""),
        "fault": pc.coalesce(table.column("fault"), no_id),
        "image_fault": pc.if_else(says_no, "hasImage is False", pa.scalar(None, pa.string())),
    }
    return pa.table({**{name: table.column(name) for name in table.column_names}, **changed})


READERS = {FakedditDataSection: read_fakeddit}
