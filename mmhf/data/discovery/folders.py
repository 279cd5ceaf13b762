"""Folders and archives of images: classes, captions in text files, tars, Fakeddit's and Flickr30k's layouts."""

from __future__ import annotations

import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmhf.data.discovery.findings import (
    CLASSIFY,
    CLASSIFY_PAIRS,
    LOOKED_AT,
    Finding,
    captioned,
    listed,
    typical_side,
)
from mmhf.data.discovery.roots import sample
from mmhf.data.readers import read_table
from mmhf.data.sources.fakeddit import FILES as FAKEDDIT_FILES
from mmhf.data.sources.image_folder import list_folder
from mmhf.data.sources.image_tree import IMAGE_SUFFIXES, ImageTree, Listing, arrange
from mmhf.data.splits import SPLIT_OF_NAME
from mmhf.errors import InputError


def look_at_archive(path: Path) -> Finding:
    """Find out what an archive is: class folders, or a tar of images with captions."""
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
        return look_at_tars(path.parent, [path.name])
    listing = Listing()
    listing.images += [name.removeprefix("./") for name in names if listing.takes(name.removeprefix("./"))]
    return class_folders(path, arrange(listing, origin=str(path)), None)


def class_folders(path: Path, tree: ImageTree, root: Path | None) -> Finding:
    """What a folder of class folders is; `root` is where its images can be opened."""
    train = tree.splits.get("train") or next(iter(tree.splits.values()))
    classes = Counter(image.label for image in train)
    rows = sum(len(images) for images in tree.splits.values())
    finding = Finding(f"class folders with {rows:,} images in {path}", {}, rows=rows, classes=classes)
    counts = [count for _, count in classes.most_common()]
    finding.saw.append(
        f"{len(counts)} classes of {counts[0]:,} to {counts[-1]:,} images: {listed(sorted(classes), 6)}"
    )
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
        # A folder is a class even if its rows are filtered out, so the classes that are left are named.
        if finding.leave_out_rare({}):
            section |= {"labels": {name: name for name in sorted(classes)}, "on_bad_row": "skip"}
    if tree.outside or tree.empty:
        finding.saw.append(
            f"not used: {tree.outside} images outside of class folders, {len(tree.empty)} empty folders"
        )
        if tree.empty:
            section["on_bad_row"] = "skip"
    if root is not None:
        finding.side = typical_side([root / image.path for image in sample(train, LOOKED_AT)])
    finding.sections = {CLASSIFY: section}
    return finding


def caption_files(path: Path, images: Sequence[str]) -> dict[str, list[str]]:
    """Image → the lines of the text file that lies beside it."""
    found = {}
    for image in images:
        text = path / (os.path.splitext(image)[0] + ".txt")
        if text.is_file():
            lines = [line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines()]
            found[image] = [line for line in lines if line]
    return found


def with_caption_files(path: Path, captions: dict[str, list[str]], derived: Path) -> Finding:
    """What images with text files beside them are; they get a table."""
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
        captioned(section),
        guessed=[f"{derived}: a table of the captions, written from the text files; each line is one caption"],
        rows=len(captions),
        side=typical_side([path / image for image in sample(list(captions), LOOKED_AT)]),
        derived="\n".join(lines) + "\n",
    )


def fakeddit(path: Path) -> Finding:
    """What a folder in Fakeddit's layout is."""
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


def flickr30k(path: Path) -> Finding:
    """What a folder in Flickr30k's layout is."""
    section = {"source": "flickr30k", "path": str(path)}
    images = len(list_folder(path, on_link_out="skip").images)
    return Finding(
        f"Flickr30k's layout, {images:,} images in {path}",
        captioned(section),
        guessed=["splits: Karpathy's where his file is there, else a tenth each for validation and test"],
        rows=images,
        side=typical_side(_first_images(path)),
    )


def _first_images(path: Path) -> list[Path]:
    found: list[Path] = []
    for folder, _, names in os.walk(path):
        found += [Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        if len(found) >= LOOKED_AT:
            break
    return found[:LOOKED_AT]


def look_at_tars(path: Path, names: Sequence[str]) -> Finding:
    """Find out what the tars of a folder hold, by the first one to train on."""
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
            finding.side = typical_side([tar.extractfile(member).read() for member in images[:LOOKED_AT]])  # type: ignore[union-attr]
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
    finding.sections = captioned(section)
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
