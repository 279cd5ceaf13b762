"""Packs loaded data into a folder that training reads from. It is written file by file, and gone on with if killed."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from mmhf._version import __version__
from mmhf.damage import content_hash
from mmhf.data.augment import ShrinkToSide
from mmhf.data.digests import NO_IMAGE_DIGEST, digest_content
from mmhf.data.images import BadImageError, decode_image, read_image
from mmhf.data.loading import LoadedData
from mmhf.data.modalities import names_no_image
from mmhf.data.pixels import picture_of, pixels_of
from mmhf.data.prepared import MANIFEST_FILE, PATH_COLUMN, Origin, PreparedFolder, reads_of, rows_file, section_facts
from mmhf.data.seen_files import one_at_a_time
from mmhf.data.source_state import source_state
from mmhf.data.table import DIGEST_COLUMN, IMAGE_FEATURE, Reading
from mmhf.errors import DamagedError, InputError
from mmhf.files import whole_file
from mmhf.parallel import map_in_threads
from mmhf.recipe.data_sections import DataSectionBase

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95

_SHARD_ROWS = 2048
_ROWS_AT_ONCE = 64
_KEY = b"mmhf"
"""Where the schema of a file of images says what it is part of."""
_SHARD_FEATURES = datasets.Features({"image": IMAGE_FEATURE, DIGEST_COLUMN: datasets.Value("binary")})


def prepare(
    data: LoadedData, section: DataSectionBase, folder: Path, *, reading: Reading, side: int | None, overwrite: bool
) -> PreparedFolder:
    """Pack data into a folder.

    Files are written whole and in order, the manifest last; what a killed process wrote is kept if it is of the same
    data. A folder that is finished is looked through, and what is damaged in it is made again.

    Args:
        data (`LoadedData`): All splits of it.
        section (`DataSectionBase`): The recipe's data section, by which it was loaded.
        folder (`Path`): Where to; new, empty, or prepared before.
        reading (`Reading`): What of its rows the task reads.
        side (`int`, *optional*): Scale images down until their shorter side has so many pixels, as JPEG of quality 95;
            absent: keep them as they are.
        overwrite (`bool`): Make a folder anew that holds other data.

    Raises:
        InputError: The folder holds something else, or the source changed meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packing = _Packing.of(data, section, folder, reading=reading, side=side)
    with one_at_a_time(folder / MANIFEST_FILE):
        _look_at(folder, packing, overwrite=overwrite)
        if not (folder / MANIFEST_FILE).is_file():
            packing.run()
    return PreparedFolder.read(folder)


def _look_at(folder: Path, packing: _Packing, *, overwrite: bool) -> None:
    """Take the manifest away from a folder in which something is to be made; files that can stay are found later.

    Raises:
        InputError: It holds something else.
    """
    if not (folder / MANIFEST_FILE).is_file():
        others = [path.name for path in folder.iterdir() if not path.name.startswith((".", MANIFEST_FILE))]
        others = [name for name in others if not name.endswith((".images.arrow", ".rows.arrow"))]
        if others:
            raise InputError(f"{folder}: holds {others[0]} and no prepared data; choose another folder")
        return
    try:
        found = PreparedFolder.read(folder)
    except DamagedError as error:
        logger.warning("%s; it is made anew", error)
        (folder / MANIFEST_FILE).unlink()
        return
    if found.origin.key() != packing.origin.key():
        if not overwrite:
            why = _describe_difference(found.origin, packing.origin)
            raise InputError(f"{folder}: {why}; --overwrite makes it anew")
        (folder / MANIFEST_FILE).unlink()
    elif damage := found.find_damage():
        logger.warning("%s: %s; made again", folder, ", ".join(damage))
        (folder / MANIFEST_FILE).unlink()
        for name in found.facts["files"]:
            if any(each.startswith(f"{name} ") for each in damage):
                (folder / name).unlink(missing_ok=True)
    else:
        logger.info("%s: was prepared before", folder)


def _describe_difference(made: Origin, wanted: Origin) -> str:
    for key in wanted.data:
        if json.dumps(made.data.get(key)) != json.dumps(wanted.data[key]):
            return f"was prepared with another data.{key}"
    if made.side != wanted.side:
        return "was prepared with images of another size"
    if made.source != wanted.source or made.rows != wanted.rows:
        return "its source has changed since it was prepared"
    return "was prepared for another task"


@dataclass
class _Packing:
    """Packs one folder."""

    data: LoadedData
    section: DataSectionBase
    folder: Path
    origin: Origin
    paths: dict[str, pa.ChunkedArray]
    """By split, where images are that are files on this machine."""

    @classmethod
    def of(
        cls, data: LoadedData, section: DataSectionBase, folder: Path, *, reading: Reading, side: int | None
    ) -> _Packing:
        paths = {split: _paths_of(table) for split, table in data.splits.items()}
        origin = Origin(
            section_facts(section),
            reads_of(reading),
            list(reading.extra_columns),
            side,
            source_state(section, _each(paths), _folders(paths)),
            data.fingerprint(),
        )
        return cls(data, section, folder, origin, paths)

    def run(self) -> None:
        shards = {
            split: [
                self.folder / f"{split}-{number:05}.images.arrow" for number in range(-(-len(table) // _SHARD_ROWS))
            ]
            for split, table in self.data.tables().items()
        }
        total = sum(len(table) for table in self.data.tables().values())
        key = self.origin.key().encode()
        with tqdm(total=total, unit="image", desc="preparing", leave=False) as bar:
            for split, files in shards.items():
                for number, path in enumerate(files):
                    start = number * _SHARD_ROWS
                    stop = min(start + _SHARD_ROWS, len(self.data.tables()[split]))
                    if _is_whole(path, key, stop - start):
                        bar.update(stop - start)
                    else:
                        self._write_images(self.data.tables()[split], range(start, stop), path, bar)
                self._write_rows(split, files)
        if source_state(self.section, _each(self.paths), _folders(self.paths)) != self.origin.source:
            raise InputError(f"{self.folder}: the source changed while it was prepared; prepare it again")
        wanted = [path for split, files in shards.items() for path in (self.folder / rows_file(split), *files)]
        for path in (*self.folder.glob("*.images.arrow"), *self.folder.glob("*.rows.arrow")):
            if path not in wanted:
                path.unlink()
        PreparedFolder.write(
            self.folder,
            self.origin,
            mmhf=__version__,
            label_names=self.data.label_names,
            bad_examples=self.data.bad_examples,
            duplicates=self.data.duplicates,
            filter_steps=self.data.filter_steps,
            folders=_folders(self.paths),
            shards={split: [path.name for path in files] for split, files in shards.items()},
            files={path.name: [path.stat().st_size, content_hash(path)] for path in wanted},
        )

    def _write_images(self, table: datasets.Dataset, rows: range, path: Path, bar: tqdm[Any]) -> None:
        images = table.select_columns(["image"])
        schema = _SHARD_FEATURES.arrow_schema
        schema = schema.with_metadata({**(schema.metadata or {}), _KEY: self.origin.key().encode()})
        chunks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]

        def packed(chunk: range) -> pa.RecordBatch:
            contents = [_content(image, self.origin.side) for image in images[list(chunk)]["image"]]
            digests = [NO_IMAGE_DIGEST.tobytes() if each is None else digest_content(each) for each in contents]
            columns = [[{"path": None, "bytes": content} for content in contents], digests]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        with whole_file(path) as temporary, pa.ipc.new_stream(str(temporary), schema) as writer:
            for batch in map_in_threads(packed, chunks):
                writer.write_batch(batch)
                bar.update(batch.num_rows)

    def _write_rows(self, split: str, shards: Sequence[Path]) -> None:
        """All columns but the images, with their digests, which the files of images know."""
        rows = self.data.tables()[split].remove_columns("image")
        digests = [datasets.Dataset.from_file(str(path)).data.column(DIGEST_COLUMN) for path in shards]
        known = pa.chunked_array([chunk for column in digests for chunk in column.chunks], pa.binary())
        table = rows.with_format("arrow")[:].append_column(DIGEST_COLUMN, known)
        features = datasets.Features(
            {**rows.features, DIGEST_COLUMN: datasets.Value("binary"), PATH_COLUMN: datasets.Value("string")}
        )
        table = table.append_column(PATH_COLUMN, self.paths[split]).cast(features.arrow_schema)
        path = self.folder / rows_file(split)
        with whole_file(path) as temporary, pa.ipc.new_stream(str(temporary), features.arrow_schema) as writer:
            writer.write_table(table, max_chunksize=10_000)


def _content(image: dict[str, Any] | None, side: int | None) -> bytes | None:
    """What is kept of an image; nothing where none is named, and no bytes where it cannot be read."""
    if names_no_image(image):
        return None
    try:
        content = read_image(image or {})
        return content if side is None else scaled_image(content, side)
    except BadImageError:
        return b""


def scaled_image(content: bytes, side: int) -> bytes:
    """An image as JPEG of the size that is needed; its own file where that is no larger, or cannot be decoded.

    Args:
        content (`bytes`): Its file.
        side (`int`): What its shorter side is scaled to, if it is longer.
    """
    try:
        picture = decode_image(content)
    except BadImageError:  # found again, and listed, when it is decoded for training
        return content
    if min(picture.size) <= side:
        return content
    stream = io.BytesIO()
    picture_of(ShrinkToSide(side)(pixels_of(picture))).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _is_whole(path: Path, key: bytes, num_rows: int) -> bool:
    """Whether a file of images is there, of the same data, and to its end."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            is_ours = (reader.schema.metadata or {}).get(_KEY) == key
            return is_ours and sum(batch.num_rows for batch in reader) == num_rows
    except (OSError, pa.ArrowException):
        return False


def _paths_of(table: object) -> pa.ChunkedArray:
    """The paths of a table's images; null for those that are in it, or behind URLs."""
    if not isinstance(table, datasets.Dataset):
        raise InputError("data that is streamed is read in order already, and is not prepared; set streaming to false")
    chunks = [pa.nulls(0, pa.string())]
    for batch in table.select_columns(["image"]).with_format("arrow").iter(10_000):
        image = batch.column("image").combine_chunks()
        path, content = pc.struct_field(image, "path"), pc.struct_field(image, "bytes")
        is_file = pc.and_(pc.is_null(content), pc.invert(pc.fill_null(pc.match_substring(path, "://"), True)))
        chunks.append(pc.if_else(is_file, path, pa.scalar(None, pa.string())))
    return pa.chunked_array(chunks)


def _each(paths: dict[str, pa.ChunkedArray]) -> Iterator[str]:
    return (
        path for column in paths.values() for chunk in column.chunks for path in chunk.to_pylist() if path is not None
    )


def _folders(paths: dict[str, pa.ChunkedArray]) -> list[str]:
    return sorted({os.path.dirname(path) for path in _each(paths)})
