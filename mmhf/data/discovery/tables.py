"""Tables and data sets of the Hub: which columns are what, and the `data:` section that reads them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mmhf.data.discovery.findings import (
    CLASSIFY,
    CLASSIFY_PAIRS,
    LOOKED_AT,
    Finding,
    captioned,
    listed,
    typical_side,
)
from mmhf.data.discovery.label_kinds import LabelKind
from mmhf.data.discovery.roles import Ask, ColumnRoles, find_roles
from mmhf.data.discovery.roots import sample
from mmhf.data.hub_datasets import load_hub_splits
from mmhf.data.readers import read_table
from mmhf.data.sources.table import METADATA_FILES
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.errors import InputError


def look_at_tables(
    files: dict[str | None, Path], ask: Ask, derived: Path, label: str | None, *, folder: Path | None = None
) -> Finding:
    """Find out what the tables of the splits are, or one table, or the metadata of a folder."""
    first = next(iter(files.values())) if "train" not in files else files["train"]
    columns = _read_columns(first)
    if not any(columns.values()):
        raise InputError(f"{first}: has no rows")
    roles = find_roles(columns, beside=first.parent, origin=str(first), ask=ask, label=label)
    needed = {roles.label or roles.text or roles.image}
    lacking = {split: path for split, path in files.items() if not needed <= _header(path)}
    files = {split: path for split, path in files.items() if split not in lacking}
    rows = max(len(values) for values in columns.values())
    kind = "metadata" if folder is not None else first.suffix.lstrip(".").upper()
    finding = Finding(f"{kind} of {rows:,} rows in {first}", {}, rows=rows, classes=roles.kind.counts)
    finding.target, finding.columns = roles.kind.target, roles.columns
    finding.saw.append(f"columns: {listed(list(columns), 8)}")
    finding.guessed.append(f"images: column {roles.image}, {roles.why['image']}")
    if lacking:
        names = ", ".join(str(path) for path in lacking.values())
        finding.saw.append(f"{names}: has no column {', '.join(needed)}; not used")
    if roles.root is not None and roles.root.found < roles.root.tried:
        finding.saw.append(f"{roles.root.tried - roles.root.found} of {roles.root.tried} images tried are missing")
    finding.side = _side_of_rows(columns[roles.image], roles)
    _say_roles(finding, roles)
    where = _where(files, folder, roles)
    if roles.ending and roles.root is not None:
        if None not in files:
            raise InputError(
                f"{first}: column {roles.image!r} names images without {roles.ending}; add a column with the whole "
                "file names to each table"
            )
        finding.derived = _with_endings(first, roles)
        finding.guessed.append(f"{derived}: the same rows with a column of file names, written because ids lack them")
        where = {"path": str(derived), "image_root": str(roles.root.folder)}
        roles.image = "image_file"
    finding.sections = _table_sections(finding, roles, where, is_cut=None in files and roles.split is None)
    return finding


def look_at_data_set(name: str, ask: Ask, label: str | None) -> Finding:
    """Find out what a data set of the Hub is, or one that `save_to_disk` wrote."""
    splits = load_hub_splits(name, streaming=True)
    theirs = next((each for each in splits if SPLIT_OF_NAME.get(str(each).lower()) == "train"), next(iter(splits)))
    features = splits[theirs].features or {}
    images = [each for each, feature in features.items() if isinstance(feature, datasets.Image)]
    part = splits[theirs]
    for column in images:
        part = part.cast_column(column, datasets.Image(decode=False))
    rows = list(part.take(200))
    if not rows:
        raise InputError(f"data set {name}: its split {theirs} has no rows")
    columns = {each: [row[each] for row in rows] for each in rows[0]}
    roles = find_roles(columns, beside=Path(name), origin=f"data set {name}", ask=ask, label=label)
    for each, feature in features.items():
        if isinstance(feature, datasets.ClassLabel) and label is None:
            roles.label = each
            counts = Counter(feature.int2str(value) for value in columns[each] if value >= 0)
            roles.kind = LabelKind({}, counts, f"{len(counts)} classes")
    side = _side_of_rows(columns[roles.image], roles)
    finding = Finding(f"data set {name}", {}, classes=roles.kind.counts, side=side, target=roles.kind.target)
    finding.columns = roles.columns
    finding.saw.append(f"splits: {', '.join(map(str, splits))}; columns: {listed(list(columns), 8)}")
    finding.guessed.append(f"images: column {roles.image}")
    finding.guessed += [f"label: column {roles.label}"] if roles.label else []
    finding.guessed += [f"text: column {roles.text}"] if roles.text else []
    base: dict[str, Any] = {"source": "hub", "path": name}
    named = {SPLIT_OF_NAME[str(each).lower()]: str(each) for each in splits if str(each).lower() in SPLIT_OF_NAME}
    if "train" not in named:
        base |= {"splits": {"train": str(theirs)}, "split": {"validation": 0.1, "test": 0.1}}
    elif "validation" not in named and "test" not in named:
        base |= {"split": {"validation": 0.1, "test": 0.1}}
        base |= {"splits": named} if named["train"] != "train" else {}
    elif any(ours != given for ours, given in named.items()):
        base["splits"] = named
    roles.split = None
    sections = _table_sections(finding, roles, {}, is_cut=False)
    kept = ("columns", *roles.kind.section)
    finding.sections = {
        task: {**base, **{key: value for key, value in section.items() if key in kept}}
        for task, section in sections.items()
    }
    return finding


def choose_table(tables: list[Path], ask: Ask) -> dict[str | None, Path]:
    """The tables of the splits, or the one that is asked for."""
    for table in tables:
        found = split_files(table)
        if None not in found:
            return found
    tables.sort(key=lambda table: -table.stat().st_size)
    chosen = ask("Which table?", [str(table) for table in tables])
    return {None: Path(chosen)}


def split_files(path: Path) -> dict[str | None, Path]:
    """The files of the splits, when this is the one to train on and another one lies beside it."""
    parts = re.split(r"([\W_]+)", path.stem)
    for place, part in enumerate(parts):
        if SPLIT_OF_NAME.get(part.lower()) != "train":
            continue
        found: dict[str | None, Path] = {"train": path}
        for name, split in SPLIT_OF_NAME.items():
            if split == "train" or split in found:
                continue
            written = name.upper() if part.isupper() else name.capitalize() if part[:1].isupper() else name
            sibling = path.with_name("".join([*parts[:place], written, *parts[place + 1 :]]) + path.suffix)
            if sibling.is_file():
                found[split] = sibling
        if len(found) > 1:
            return found
    return {None: path}


def metadata_tables(path: Path) -> dict[str | None, Path] | None:
    """The metadata of a folder, or those of its folders that are named as splits."""
    for name in METADATA_FILES:
        if (path / name).is_file():
            return {None: path / name}
    found: dict[str | None, Path] = {}
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        split = SPLIT_OF_NAME.get(folder.name.lower())
        table = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
        if split is not None and table is not None:
            found[split] = table
    return found or None


def _read_columns(path: Path) -> dict[str, list[Any]]:
    """A table's columns; of images in it the first few."""
    if path.suffix.lower() != ".parquet":
        return _values(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
    held = [each.name for each in file.schema_arrow if _holds_images(each.type)]
    others = [name for name in file.schema_arrow.names if name not in held]
    columns = _values(path, others) if others else {}
    first = next(file.iter_batches(LOOKED_AT, columns=held), None) if held else None
    return {**columns, **({} if first is None else {name: first.column(name).to_pylist() for name in held})}


def _values(path: Path, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Columns of a table as Python values, None where one is missing."""
    columns = read_table(path, names).columns
    return {name: values if isinstance(values, list) else values.to_pylist() for name, values in columns.items()}


def _holds_images(kind: pa.DataType) -> bool:
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _header(path: Path) -> set[str]:
    return set(pq.ParquetFile(path).schema_arrow.names if path.suffix == ".parquet" else read_table(path).columns)


def _where(files: Mapping[str | None, Path], folder: Path | None, roles: ColumnRoles) -> dict[str, Any]:
    """The keys that name files and the folder of the images."""
    where: dict[str, Any]
    if folder is not None:
        where = {"path": str(folder)}
    else:
        where = {"path" if split is None else split: str(path) for split, path in files.items()}
    beside = next(iter(files.values())).parent
    if roles.root is not None and roles.root.folder.absolute() != beside.absolute():
        where["image_root"] = str(roles.root.folder)
    return where


def _say_roles(finding: Finding, roles: ColumnRoles) -> None:
    if roles.label is not None:
        finding.guessed.append(f"label: column {roles.label}, {roles.kind.said}")
    if roles.text is not None:
        finding.guessed.append(f"text: column {roles.text}, {roles.why['text']}")
    if roles.split is not None:
        finding.guessed.append(f"splits: column {roles.split}")
    if roles.group is not None and roles.label is not None and roles.split is None:
        finding.guessed.append(f"column {roles.group} never spans two splits")


def _table_sections(
    finding: Finding, roles: ColumnRoles, where: dict[str, Any], *, is_cut: bool
) -> dict[str, dict[str, Any]]:
    base = {"source": "table", **where}
    if roles.split is not None:
        base["split_column"] = roles.split
    sections: dict[str, dict[str, Any]] = {}
    if roles.label is not None:
        columns = {"image": roles.image, "label": roles.label}
        rest = dict(roles.kind.section)
        if is_cut:
            rest = finding.leave_out_rare(rest)
            rest |= {"split": {"group_by": roles.group}} if roles.group is not None else {}
        if roles.text is not None:
            sections[CLASSIFY_PAIRS] = {**base, "columns": {**columns, "text": roles.text}, **rest}
        sections[CLASSIFY] = {**base, "columns": columns, **rest}
    if roles.captions:
        captions = roles.captions[0] if len(roles.captions) == 1 else roles.captions
        section = {**base, "columns": {"image": roles.image, "captions": captions}}
        sections |= captioned(section)
    if not sections:
        raise InputError(
            f"{finding.what}: its images are there, but no column is a label (2 values or more, each in several rows) "
            "or a text; name the label's column with --label"
        )
    return sections


def _with_endings(table: Path, roles: ColumnRoles) -> str:
    """The table as JSON lines, with the column `image_file`."""
    columns = _values(table)
    lines = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        name = row[roles.image]
        row["image_file"] = None if name is None else f"{name}{roles.ending}"
        lines.append(json.dumps(row, ensure_ascii=False, default=str))
    return "\n".join(lines) + "\n"


def _side_of_rows(values: Sequence[Any], roles: ColumnRoles) -> int | None:
    some = sample([value for value in values if value is not None], LOOKED_AT)
    if roles.root is not None:
        return typical_side([roles.root.folder / f"{value}{roles.ending}" for value in some])
    contents = [value["bytes"] if isinstance(value, dict) else value for value in some]
    return typical_side([content for content in contents if isinstance(content, bytes)])
