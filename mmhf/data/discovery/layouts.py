"""What a file, folder or name is, and the `data:` section that reads it."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from mmhf.data.discovery.columns import Ask, ColumnRoles, find_roles
from mmhf.data.discovery.roots import sample
from mmhf.data.hub_datasets import load_hub_splits
from mmhf.data.readers import read_table
from mmhf.data.sources.fakeddit import FILES as FAKEDDIT_FILES
from mmhf.data.sources.flickr30k import has_captions_of_flickr30k
from mmhf.data.sources.image_cache import is_archive
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.sources.image_tree import IMAGE_SUFFIXES, ImageTree, Listing, arrange
from mmhf.data.sources.table import METADATA_FILES
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names

CLASSIFY_PAIRS, CLASSIFY, CONTRAST, CAPTION = (
    "image-text-classification",
    "image-classification",
    "contrastive",
    "image-captioning",
)
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.parquet$")
_RARE = 3
"""Rows that a label needs to be in each split of a table that is cut."""
_LOOKED_AT = 12


@dataclass
class Finding:
    """What data turned out to be.

    Attributes:
        what (`str`): In words, with the number of rows or images.
        sections (`dict[str, dict]`): Task that it can train → the recipe's `data:` section, the likeliest first.
        saw (`list[str]`): Facts, one a line.
        guessed (`list[str]`): What was chosen and why, one a line.
        rows (`int`, *optional*): Rows, or images, of all splits; None when they are not counted.
        classes (`Counter[str]`): Label → rows.
        side (`int`, *optional*): Shorter side of a typical image in pixels.
        derived (`str`, *optional*): Content of the table that has to be written for it.
    """

    what: str
    sections: dict[str, dict[str, Any]]
    saw: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    rows: int | None = None
    classes: Counter[str] = field(default_factory=Counter)
    side: int | None = None
    derived: str | None = None


def look_at(data: str, *, ask: Ask, derived: Path, label: str | None = None) -> Finding:
    """Find out what data is.

    Args:
        data (`str`): A table, a folder, an archive, or the name of a data set of the Hub.
        ask (`Ask`): Decides where two readings are possible.
        derived (`Path`): Where a table will be written, if the data needs one that it lacks.
        label (`str`, *optional*): The column of the label.

    Raises:
        InputError: it is not there, or nothing that can be trained on; the message says what was looked for.
    """
    path = Path(data)
    if "://" in data:
        raise InputError(f"{data}: only local files and data sets of the Hub are looked at; docs/cloud.md has recipes")
    if path.is_file():
        if is_archive(data):
            return _look_at_archive(path)
        if path.suffix.lower() in _TABLES:
            return _look_at_tables(_split_files(path), ask, derived, label)
        raise InputError(f"{data}: not a table ({', '.join(_TABLES)}), a folder or an archive of images")
    if path.is_dir():
        return _look_at_folder(path, ask, derived, label)
    if _HUB_NAME.fullmatch(data) and not Path(data.partition("/")[0]).is_dir():
        return _look_at_data_set(data, ask, label)
    beside = path.parent if path.parent.is_dir() else Path()
    near = did_you_mean(nearest_names(str(path), [str(each) for each in sorted(beside.iterdir())]))
    raise InputError(f"{data}: no such file or folder{near}")


def _look_at_folder(path: Path, ask: Ask, derived: Path, label: str | None) -> Finding:
    inside = sorted(each.name for each in path.iterdir())
    if FAKEDDIT_FILES["train"] in inside:
        return _fakeddit(path)
    if {"dataset_dict.json", "state.json"} & set(inside):
        return _look_at_data_set(str(path), ask, label)
    if (tables := _metadata_tables(path)) is not None:
        return _look_at_tables(tables, ask, derived, label, folder=path)
    if has_captions_of_flickr30k(path):
        return _flickr30k(path)
    names = [name for name in inside if (path / name).is_file()]
    if tars := [name for name in names if name.endswith(".tar")]:
        return _look_at_tars(path, tars)
    if any(_SHARD.search(each.name) for each in [*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        return _look_at_data_set(str(path), ask, label)
    tables_here = [path / name for name in names if os.path.splitext(name)[1].lower() in _TABLES]
    if tables_here:
        return _look_at_tables(_choose_table(tables_here, ask), ask, derived, label)
    listing = list_folder(path, on_link_out="skip")
    if not listing.images:
        raise InputError(
            f"{path}: no table ({', '.join(_TABLES)}), no tars and no images in it; mmhf init wants the folder or "
            "file that has them"
        )
    captions = _caption_files(path, listing.images)
    if 2 * len(captions) > len(listing.images):
        return _with_caption_files(path, captions, derived)
    return _class_folders(path, arrange(listing, origin=str(path)), path)


def _choose_table(tables: list[Path], ask: Ask) -> dict[str | None, Path]:
    """The tables of the splits, or the one that is asked for."""
    for table in tables:
        found = _split_files(table)
        if None not in found:
            return found
    tables.sort(key=lambda table: -table.stat().st_size)
    chosen = ask("Which table?", [str(table) for table in tables])
    return {None: Path(chosen)}


def _split_files(path: Path) -> dict[str | None, Path]:
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


def _metadata_tables(path: Path) -> dict[str | None, Path] | None:
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
        return read_table(path).columns
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {str(error).splitlines()[0]}") from error
    held = [each.name for each in file.schema_arrow if _holds_images(each.type)]
    others = [name for name in file.schema_arrow.names if name not in held]
    columns = read_table(path, others).columns if others else {}
    first = next(file.iter_batches(_LOOKED_AT, columns=held), None) if held else None
    return {**columns, **({} if first is None else {name: first.column(name).to_pylist() for name in held})}


def _holds_images(kind: pa.DataType) -> bool:
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _look_at_tables(
    files: dict[str | None, Path], ask: Ask, derived: Path, label: str | None, *, folder: Path | None = None
) -> Finding:
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
    finding = Finding(f"{kind} of {rows:,} rows in {first}", {}, rows=rows, classes=roles.classes)
    finding.saw.append(f"columns: {', '.join(_some(list(columns), 8))}")
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
        counts = [count for _, count in finding.classes.most_common()]
        finding.guessed.append(
            f"label: column {roles.label}, {len(counts)} classes of {counts[0]:,} to {counts[-1]:,} rows"
        )
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
        rest: dict[str, Any] = {}
        if is_cut:
            rest |= _without_rare(finding)
            rest |= {"split": {"group_by": roles.group}} if roles.group is not None else {}
        if roles.text is not None:
            sections[CLASSIFY_PAIRS] = {**base, "columns": {**columns, "text": roles.text}, **rest}
        sections[CLASSIFY] = {**base, "columns": columns, **rest}
    if roles.captions:
        captions = roles.captions[0] if len(roles.captions) == 1 else roles.captions
        section = {**base, "columns": {"image": roles.image, "captions": captions}}
        sections |= {CONTRAST: section, CAPTION: section}
    if not sections:
        raise InputError(
            f"{finding.what}: its images are there, but no column is a label (2 values or more, each in several rows) "
            "or a text; name the label's column with --label"
        )
    return sections


def _without_rare(finding: Finding) -> dict[str, Any]:
    """A filter for labels that cannot be in each split; those labels no longer count."""
    rare = [name for name, count in finding.classes.items() if count < _RARE]
    if not rare or len(finding.classes) - len(rare) < 2:
        return {}
    finding.guessed.append(f"left out: {len(rare)} classes of fewer than {_RARE} rows, such as {rare[0]}")
    for name in rare:
        del finding.classes[name]
    return {"filters": {"min_samples_per_label": _RARE, "min_samples_per_split": 0}}


def _with_endings(table: Path, roles: ColumnRoles) -> str:
    """The table as JSON lines, with the column `image_file`."""
    columns = read_table(table).columns
    lines = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        name = row[roles.image]
        row["image_file"] = None if name is None else f"{name}{roles.ending}"
        lines.append(json.dumps(row, ensure_ascii=False, default=str))
    return "\n".join(lines) + "\n"


def _class_folders(path: Path, tree: ImageTree, root: Path | None) -> Finding:
    train = tree.splits.get("train") or next(iter(tree.splits.values()))
    classes = Counter(image.label for image in train)
    rows = sum(len(images) for images in tree.splits.values())
    finding = Finding(f"class folders with {rows:,} images in {path}", {}, rows=rows, classes=classes)
    counts = [count for _, count in classes.most_common()]
    finding.saw.append(f"{len(counts)} classes of {counts[0]:,} to {counts[-1]:,} images: {_listed(sorted(classes))}")
    if len(classes) < 2:
        raise InputError(f"{path}: its {rows} images are all in one class folder; a classifier needs at least two")
    section: dict[str, Any] = {"source": "image_folder", "path": str(path)}
    if tree.is_split:
        finding.saw.append("splits: " + ", ".join(f"{split} {len(images):,}" for split, images in tree.splits.items()))
        if "validation" not in tree.splits:
            section["split"] = {"validation": 0.1, "test": 0.0 if "test" in tree.splits else 0.1}
            finding.guessed.append("a tenth of the training images is kept for validation, which has no folder")
    else:
        finding.guessed.append("a tenth of the images each for validation and test")
        if _without_rare(finding):  # a folder is a class although its rows are filtered: the classes are named instead
            section |= {"labels": {name: name for name in sorted(classes)}, "on_bad_row": "skip"}
    if tree.outside or tree.empty:
        finding.saw.append(
            f"not used: {tree.outside} images outside of class folders, {len(tree.empty)} empty folders"
        )
        if tree.empty:
            section["on_bad_row"] = "skip"
    if root is not None:
        finding.side = typical_side([root / image.path for image in sample(train, _LOOKED_AT)])
    finding.sections = {CLASSIFY: section}
    return finding


def _look_at_archive(path: Path) -> Finding:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
        else:
            with tarfile.open(path) as tar:
                names = [member.name for member in tar if member.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path}: not an archive, or a damaged one: {error}") from error
    if path.suffix.lower() == ".tar" and any(name.endswith((".txt", ".json", ".cls")) for name in names):
        return _look_at_tars(path.parent, [path.name])
    listing = Listing()
    listing.images += [name.removeprefix("./") for name in names if listing.takes(name.removeprefix("./"))]
    return _class_folders(path, arrange(listing, origin=str(path)), None)


def _caption_files(path: Path, images: Sequence[str]) -> dict[str, list[str]]:
    """Image → the lines of the text file that lies beside it."""
    found = {}
    for image in images:
        text = path / (os.path.splitext(image)[0] + ".txt")
        if text.is_file():
            lines = [line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines()]
            found[image] = [line for line in lines if line]
    return found


def _with_caption_files(path: Path, captions: dict[str, list[str]], derived: Path) -> Finding:
    tops = {image: SPLIT_OF_NAME.get(image.partition("/")[0].lower()) for image in captions}
    is_split = "train" in tops.values() and None not in tops.values()
    lines = [
        json.dumps(
            {"file_name": image, "captions": texts, **({"split": tops[image]} if is_split else {})}, ensure_ascii=False
        )
        for image, texts in sorted(captions.items())
    ]
    section: dict[str, Any] = {"source": "table", "path": str(derived), "image_root": str(path)}
    section["columns"] = {"image": "file_name", "captions": "captions"}
    if is_split:
        section["split_column"] = "split"
    return Finding(
        f"{len(captions):,} images with text files in {path}",
        {CONTRAST: section, CAPTION: section},
        guessed=[f"{derived}: a table of the captions, written from the text files; each line is one caption"],
        rows=len(captions),
        side=typical_side([path / image for image in sample(list(captions), _LOOKED_AT)]),
        derived="\n".join(lines) + "\n",
    )


def _fakeddit(path: Path) -> Finding:
    table = read_table(path / FAKEDDIT_FILES["train"], ["2_way_label"])
    classes = Counter(str(value).removesuffix(".0") for value in table.columns["2_way_label"] if value is not None)
    return Finding(
        f"Fakeddit's layout, {len(table.rows):,} training rows in {path}",
        {CLASSIFY_PAIRS: {"source": "fakeddit", "path": str(path)}},
        guessed=["label: 2_way_label; data.label chooses 3_way_label or 6_way_label"],
        rows=len(table.rows),
        classes=Counter({{"0": "fake", "1": "true"}.get(name, name): count for name, count in classes.items()}),
        side=typical_side(_first_images(path)),
    )


def _flickr30k(path: Path) -> Finding:
    section = {"source": "flickr30k", "path": str(path)}
    images = len(list_folder(path, on_link_out="skip").images)
    return Finding(
        f"Flickr30k's layout, {images:,} images in {path}",
        {CONTRAST: section, CAPTION: section},
        guessed=["splits: Karpathy's where his file is there, else a tenth each for validation and test"],
        rows=images,
        side=typical_side(_first_images(path)),
    )


def _first_images(path: Path) -> list[Path]:
    found: list[Path] = []
    for folder, _, names in os.walk(path):
        found += [Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        if len(found) >= _LOOKED_AT:
            break
    return found[:_LOOKED_AT]


def _look_at_tars(path: Path, names: Sequence[str]) -> Finding:
    by_split: dict[str, list[str]] = {}
    for name in sorted(names):
        words = [SPLIT_OF_NAME.get(word) for word in re.split(r"[\W_\d]+", name.lower())]
        by_split.setdefault(next((word for word in words if word), "train"), []).append(name)
    by_split = by_split if "train" in by_split else {"train": sorted(names)}
    finding = Finding(f"{len(names)} tars in {path}", {})
    if "validation" not in by_split and len(by_split["train"]) > 1:
        by_split["validation"] = [by_split["train"].pop()]
        finding.guessed.append(f"validation: {by_split['validation'][0]}, which is held out")
    section: dict[str, Any] = {"source": "webdataset"}
    for split, of_split in by_split.items():
        section[split] = _pattern(path, of_split)
    first = path / by_split["train"][0]
    try:
        with tarfile.open(first) as tar:
            members = [member for member in tar if member.isfile()]
            endings = Counter(member.name.rpartition("/")[2].partition(".")[2].lower() for member in members)
            images = [member for member in members if f".{member.name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES]
            finding.side = typical_side([tar.extractfile(member).read() for member in images[:_LOOKED_AT]])  # type: ignore[union-attr]
            caption = "txt" if "txt" in endings else _json_caption(tar, members)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{first}: not an archive, or a damaged one: {error}") from error
    finding.rows = len(images) * len(by_split["train"])
    finding.saw.append("members: " + ", ".join(f"{count} .{ending}" for ending, count in endings.most_common(5)))
    if caption is None or not images:
        what = "captions (.txt, or .json with a text)" if images else "images"
        raise InputError(f"{first}: no {what} in it; tars hold KEY.jpg and KEY.txt or KEY.json")
    used = sorted({ending for ending in endings if f".{ending}" in IMAGE_SUFFIXES})
    if not set(used) <= {"jpg", "jpeg", "png", "webp"}:
        section["image"] = used
    if caption != "txt":
        section["caption"] = caption
    finding.guessed.append(f"caption: {caption}")
    finding.sections = {CONTRAST: section, CAPTION: section}
    return finding


def _pattern(path: Path, names: list[str]) -> str | list[str]:
    """One pattern for the files where it names no others."""
    pattern = os.path.commonprefix(names).rstrip("0123456789") + "*.tar"
    if len(names) > 1 and sorted(each.name for each in path.glob(pattern)) == names:
        return str(path / pattern)
    files = [str(path / name) for name in names]
    return files[0] if len(files) == 1 else files


def _json_caption(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> str | None:
    for member in members:
        if not member.name.endswith(".json"):
            continue
        try:
            content = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
        except ValueError as error:
            raise InputError(f"{os.fsdecode(tar.name or '')}: {member.name} is no JSON: {error}") from error
        if not isinstance(content, dict):
            return None
        texts = {name: value for name, value in content.items() if isinstance(value, str | list) and value}
        named = [name for name in ("caption", "captions", "text", "description") if name in texts]
        return f"json:{named[0]}" if named else None
    return None


def _look_at_data_set(name: str, ask: Ask, label: str | None) -> Finding:
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
            roles.classes = Counter(feature.int2str(value) for value in columns[each] if value >= 0)
    finding = Finding(f"data set {name}", {}, classes=roles.classes, side=_side_of_rows(columns[roles.image], roles))
    finding.saw.append(f"splits: {', '.join(map(str, splits))}; columns: {', '.join(_some(list(columns), 8))}")
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
    finding.sections = {task: {**base, "columns": section["columns"]} for task, section in sections.items()}
    return finding


def _side_of_rows(values: Sequence[Any], roles: ColumnRoles) -> int | None:
    some = sample([value for value in values if value is not None], _LOOKED_AT)
    if roles.root is not None:
        return typical_side([roles.root.folder / f"{value}{roles.ending}" for value in some])
    contents = [value["bytes"] if isinstance(value, dict) else value for value in some]
    return typical_side([content for content in contents if isinstance(content, bytes)])


def typical_side(images: Sequence[Path | bytes]) -> int | None:
    """Median of the shorter sides of some images, in pixels; None when none of them can be read."""
    sides = []
    for image in images:
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                sides.append(min(opened.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return int(median(sides)) if sides else None


def _some(names: Sequence[str], count: int) -> list[str]:
    return [*names[:count], *(["…"] if len(names) > count else [])]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_some(names, 6))
