"""What `mmhf prepare` made of a recipe's data: its rows, and whether they still are those of the recipe.

A prepared folder holds for each split `SPLIT.rows.arrow`, all columns but the images, and `SPLIT-NNNNN.images.arrow`,
the images in files of some thousand rows. `prepared.json` is written last: it says what all of it was made of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash

from mmhf.damage import content_hash
from mmhf.data.bad_examples import BadExample
from mmhf.data.duplicates import DuplicateImage, DuplicatePair
from mmhf.data.seen_files import keep_digests, known_digests, one_at_a_time, seen_path, states_of
from mmhf.data.source_state import source_state
from mmhf.data.table import FilterStep, Reading
from mmhf.errors import DamagedError, InputError
from mmhf.files import read_json_object, write_json
from mmhf.recipe.augment_sections import needed_side
from mmhf.recipe.data_sections import DataSectionBase

logger = logging.getLogger(__name__)

MANIFEST_FILE = "prepared.json"
FORMAT = 1
PATH_COLUMN = "path"
"""Where an image was, to see whether it has changed; absent from the rows that training reads."""

_NOT_OF_ROWS = (
    "prepared", "exact", "image_size", "resize", "mean_std", "max_length", "augment", "captions", "stream", "cloud",
    "weights"
)  # fmt: skip
"""Keys of a data section that do not change which rows there are."""
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Origin:
    """What prepared rows were made of.

    Attributes:
        data (`dict`): The recipe's data section, as far as it decides on rows.
        reads (`dict`): Whether labels and texts are read; without labels, captions are.
        extra_columns (`list[str]`): Columns that evaluation and sampling read.
        side (`int`, *optional*): To how many pixels the shorter side of larger images was scaled; None: all images
            are the source's own files.
        source (`str`, *optional*): The state of the source's files.
        rows (`dict[str, str]`): Hash of the rows of each split.
    """

    data: dict[str, Any]
    reads: dict[str, bool]
    extra_columns: list[str]
    side: int | None
    source: str | None
    rows: dict[str, str]

    def key(self) -> str:
        """The same for the same rows and images."""
        return _hash_of([FORMAT, vars(self)])


def section_facts(section: DataSectionBase) -> dict[str, Any]:
    """What of a data section decides on rows."""
    return section.model_dump(mode="json", exclude=set(_NOT_OF_ROWS))


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared folder that was written to its end.

    Args:
        path (`Path`): The folder.
        origin ([`Origin`]): What it was made of.
        facts (`dict`): All that its manifest says.
    """

    path: Path
    origin: Origin
    facts: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> PreparedFolder:
        """Read the manifest of a folder.

        Raises:
            InputError: There is none, or it is damaged or of another version of mmhf.
        """
        manifest = path / MANIFEST_FILE
        if not manifest.is_file():
            if shards := len(list(path.glob("*.images.arrow"))):
                raise InputError(f"{path}: is cut short: {shards} files of images, but no {MANIFEST_FILE}")
            raise InputError(f"{path}: has no {MANIFEST_FILE}")
        try:
            facts = read_json_object(manifest)
            if facts.pop("seal", None) != _hash_of(facts):
                raise ValueError
            if facts["format"] != FORMAT:
                raise InputError(f"{path}: was prepared by another version of mmhf ({facts['mmhf']})")
            return cls(path, Origin(**facts["origin"]), facts)
        except (InputError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError) and manifest.name not in str(error):
                raise
            raise DamagedError(f"{manifest}: is damaged") from error

    @staticmethod
    def write(path: Path, origin: Origin, **facts: Any) -> None:
        """Write the manifest, which makes a folder a whole one."""
        whole = json.loads(json.dumps({"format": FORMAT, "origin": vars(origin), **facts}))
        write_json(path / MANIFEST_FILE, {**whole, "seal": _hash_of(whole)})

    def find_difference(self, section: DataSectionBase, reading: Reading) -> str | None:
        """Say why this is not the data of a recipe; None: it is.

        Args:
            section (`DataSectionBase`): The recipe's.
            reading (`Reading`): What its task reads.
        """
        made, wanted = self.origin.data, section_facts(section)
        for key in sorted({*made, *wanted}):
            if json.dumps(made.get(key)) != json.dumps(wanted.get(key)):  # the order of labels counts, too
                return f"was prepared with data.{key}={_shown(made.get(key))}, not {_shown(wanted.get(key))}"
        if self.origin.reads != reads_of(reading):
            return "was prepared for another task"
        lacking = [name for name in reading.extra_columns if name not in self.origin.extra_columns]
        if lacking:
            return f"was prepared without the column {lacking[0]!r}"
        if not reading.label and (others := set(self.origin.extra_columns) - set(reading.extra_columns)):
            return f"was prepared for a prompt with the column {min(others)!r}"
        side = self.origin.side
        if side is not None and section.exact:
            return f"holds images scaled to {side} pixels, and data.exact is true"
        needed = needed_side(section.image_size, [section.augment])
        if side is not None and side < needed:
            return f"holds images scaled to {side} pixels, and {needed} are needed"
        return None

    def is_stale(self, section: DataSectionBase) -> bool:
        """Whether the source's files have changed; not where they are on another machine."""
        state = source_state(section, self._image_paths(), self.facts["folders"])
        if state is None:
            logger.info("%s: the files that it was made of are not on this machine", self.path)
        return state not in (None, self.origin.source)

    def find_damage(self) -> list[str]:
        """The files that are missing or not as they were written, with what is wrong.

        Files that have not changed since they were last looked at are not read again.
        """
        noted: dict[str, tuple[int, str]] = self.facts["files"]
        paths = {name: self.path / name for name in noted}
        found = [
            f"{name} is missing" if not path.is_file() else f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
            for (name, path), (size, _) in zip(paths.items(), noted.values(), strict=True)
            if not path.is_file() or path.stat().st_size != size
        ]
        if found:
            return found
        expected = np.array([bytes.fromhex(digest) for _, digest in noted.values()], "V16")
        states = states_of([str(path) for path in paths.values()])
        hashes, is_known = known_digests(states)
        if not is_known.all():
            with one_at_a_time(seen_path()):
                hashes, is_known = known_digests(states)
                lacking = np.flatnonzero(~is_known)
                names = list(paths.values())
                hashes[lacking] = [bytes.fromhex(content_hash(names[place])) for place in lacking.tolist()]
                keep_digests(states[lacking], hashes[lacking])
        differs = hashes.view("S16") != expected.view("S16")
        return [f"{name} is damaged" for name, is_other in zip(noted, differs.tolist(), strict=True) if is_other]

    def table(self, split: str) -> datasets.Dataset:
        """The rows of a split, mapped, with the digest of each image's content."""
        rows = self._rows(split).remove_columns(PATH_COLUMN)
        shards = [datasets.Dataset.from_file(str(self.path / name)) for name in self.facts["shards"][split]]
        images = datasets.concatenate_datasets([shard.select_columns(["image"]) for shard in shards])
        names = ["row", "id", "image", *(name for name in rows.column_names if name not in ("row", "id"))]
        return datasets.concatenate_datasets([images, rows], axis=1).select_columns(names)

    @property
    def splits(self) -> list[str]:
        """The splits that it has."""
        return list(self.facts["shards"])

    @property
    def bad_examples(self) -> list[BadExample]:
        """Rows that were left out or blanked."""
        return [BadExample(*each) for each in self.facts["bad_examples"]]

    @property
    def duplicates(self) -> list[DuplicatePair]:
        """Images that are there twice."""
        return [
            DuplicatePair(kind, DuplicateImage(*first), DuplicateImage(*second), same_label, distance)
            for kind, first, second, same_label, distance in self.facts["duplicates"]
        ]

    @property
    def filter_steps(self) -> list[FilterStep]:
        """The rows before and after each filter."""
        return [FilterStep(*each) for each in self.facts["filter_steps"]]

    def _rows(self, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_file(str(self.path / rows_file(split)))

    def _image_paths(self) -> Iterator[str]:
        for split in self.splits:
            column = self._rows(split).data.column(PATH_COLUMN)
            for start in range(0, len(column), _ROWS_AT_ONCE):
                yield from (path for path in column.slice(start, _ROWS_AT_ONCE).to_pylist() if path is not None)


def open_prepared(section: DataSectionBase, reading: Reading) -> PreparedFolder:
    """Open the folder that a data section names as `prepared`.

    Args:
        section (`DataSectionBase`): The recipe's.
        reading (`Reading`): What its task reads.

    Raises:
        InputError: It is not there, cut short, damaged, or made of other data.
    """
    assert section.prepared is not None
    path = Path(section.prepared)
    if not path.is_dir():
        raise InputError(f"data.prepared: no such folder: {path}; `mmhf prepare RECIPE -o {path}` makes it")
    try:
        folder = PreparedFolder.read(path)
    except InputError as error:
        raise type(error)(f"data.prepared: {error}; `mmhf prepare RECIPE -o {path}` makes what is missing") from error
    difference = folder.find_difference(section, reading)
    if difference is None and (damage := folder.find_damage()):
        raise DamagedError(f"data.prepared: {path}: {damage[0]}; `mmhf prepare RECIPE -o {path}` mends it")
    if difference is None and folder.is_stale(section):
        difference = "its source has changed since"
    if difference is not None:
        raise InputError(
            f"data.prepared: {path}: {difference}; `mmhf prepare RECIPE -o {path} --overwrite` makes it anew, and "
            "without data.prepared the source is read"
        )
    return folder


def reads_of(reading: Reading) -> dict[str, bool]:
    """What of rows a task reads, as an `Origin` has it."""
    required = {"required_columns": True} if reading.required_columns else {}
    return {"label": reading.label, "text": reading.text, **required}


def rows_file(split: str) -> str:
    """The file of a split's columns."""
    return f"{split}.rows.arrow"


def _hash_of(facts: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
