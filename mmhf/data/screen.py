"""Which rows of a split are used: labels, texts, captions and images judged, each bad one named with its reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.bad_examples import BadExample
from mmhf.data.captions import clean_captions, empty_captions, is_empty
from mmhf.data.columns import IMAGE_TYPE
from mmhf.data.images import ImageFault
from mmhf.data.table import CAPTIONS_TYPE, GROUP_COLUMN, EmbeddedImages, Reading, SourceTable, extra_column
from mmhf.data.targets import RowTarget
from mmhf.errors import InputError
from mmhf.parallel import map_in_threads
from mmhf.recipe.data_sections import DataSectionBase

logger = logging.getLogger(__name__)

_CHUNK = 256
_PROGRESS_ABOVE = 20_000
_COPIED_BELOW = 64 << 20
"""A smaller column of images is copied for each split; a larger one stays in its file, and rows are chosen in it."""
_WAYS_OUT = {
    "on_bad_row": "data.on_bad_row=skip",
    "on_bad_image": "data.on_bad_image=skip or blank",
    "on_empty_text": "data.on_empty_text=skip, blank or keep",
    "on_empty_caption": "data.on_empty_text=skip",
}


class Fault(NamedTuple):
    """What is wrong with a row, and which of the recipe's choices says what happens then."""

    reason: str
    key: Literal["on_bad_row", "on_bad_image", "on_empty_text", "on_empty_caption"]


class SplitScreen:
    """Judges the rows of one split by the recipe's choices.

    Args:
        source (`SourceTable`):
            The rows.
        positions (`NDArray`):
            Those of the split.
        split (`str`):
            The split's name, for messages.
        section (`DataSectionBase`):
            `on_bad_row`, `on_empty_text`, `on_bad_image`, `limit` and `limit_seed` are read.
        reading (`Reading`):
            What the task reads.
        target ([`RowTarget`], *optional*):
            What is learnt of rows that have labels.
    """

    def __init__(
        self,
        source: SourceTable,
        positions: NDArray[np.int64],
        *,
        split: str,
        section: DataSectionBase,
        reading: Reading,
        target: RowTarget | None = None,
    ) -> None:
        self.source = source
        self.positions = positions
        self.part = source.part(split)
        self.split = split
        self.section = section
        self.reading = reading
        self.target = target
        self.bad_examples: list[BadExample] = []
        self._blank_images: list[int] = []
        self._table = source.rows.remove_columns("image").data.table
        self._images = source.rows.select_columns("image")

    def run(self, *, check_images: bool = True, groups: str | None = None) -> datasets.Dataset:
        """Judge the rows and make the table of those that are used.

        Args:
            check_images (`bool`, defaults to `True`):
                Look into the images to find broken ones.
            groups (`str`, *optional*):
                A column of the source to keep as `GROUP_COLUMN`, for what is cut later.

        Returns:
            `datasets.Dataset`: the columns of `ROW_FEATURES` or `CAPTION_FEATURES`, in the order of the source.

        Raises:
            InputError: a bad row where the recipe says to raise, or no row is left.
        """
        positions = self.positions
        limit = len(positions) if self.section.limit is None else self.section.limit
        if limit < len(positions):
            positions = positions[np.random.default_rng(self.section.limit_seed).permutation(len(positions))]
        chosen: list[NDArray[np.int64]] = []
        found = start = 0
        # A row that cannot be used is replaced by the next, so that a limit is met wherever the data allows.
        while start < len(positions) and found < limit:
            stop = start + limit - found
            usable = self._with_usable_image(self._usable_rows(positions[start:stop]), check_images)
            chosen.append(usable)
            found += len(usable)
            start = stop
        self.bad_examples.sort()
        if not found:
            raise InputError(self._nothing_left())
        if self.bad_examples:
            logger.warning("%s: %d bad rows in %s", self.part.origin, len(self.bad_examples), self.split)
        return self._make_table(self.positions[np.isin(self.positions, np.concatenate(chosen))], groups)

    def _usable_rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of which all but the image can be used."""
        rows = self._table.take(pa.array(positions))
        faulty = rows.column("fault").is_valid().to_numpy()
        if self.target is not None:
            faulty |= self.target.find_faulty(rows)
            if self.reading.text and not self.section.may_have_empty_texts():
                faulty |= rows.column("text").is_null().to_numpy()
        else:
            captions = rows.column("captions").combine_chunks()
            counts = pc.fill_null(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False)
            owners = np.repeat(np.arange(len(rows)), counts)
            faulty |= counts == 0
            faulty[owners[empty_captions(captions.flatten()).to_numpy(zero_copy_only=False)]] = True
            for name in self.reading.required_columns:
                faulty |= rows.column(extra_column(name)).is_null().to_numpy()
        if "notes" in rows.column_names:
            faulty |= rows.column("notes").is_valid().to_numpy()
        usable = ~faulty
        for number in np.flatnonzero(faulty).tolist():
            row = rows.slice(number, 1).to_pylist()[0]
            fault = self._find_fault(row)
            usable[number] = fault is None or self._keep(row, fault)
        kept: NDArray[np.int64] = positions[usable]
        return kept

    def _find_fault(self, row: dict[str, Any]) -> Fault | None:
        for note in row.get("notes") or ():
            self.bad_examples.append(BadExample(self.split, note["row"], row["id"], note["note"]))
        if row["fault"] is not None:
            return Fault(row["fault"], "on_bad_row")
        if self.target is None:
            return self._find_caption_fault(row)
        if (unusable := self.target.fault_of(row)) is not None:
            return Fault(unusable, "on_bad_row")
        if self.reading.text and row["text"] is None and not self.section.may_have_empty_texts():
            return Fault("the text is empty", "on_empty_text")
        return None

    def _find_caption_fault(self, row: dict[str, Any]) -> Fault | None:
        captions = row["captions"]
        for name in self.reading.required_columns:
            if row[extra_column(name)] is None:
                return Fault(f"{name} is empty, and the prompt needs it", "on_empty_caption")
        rows = row.get("caption_rows") or [row["row"]] * len(captions)
        for number, (text, of_caption) in enumerate(zip(captions, rows, strict=True), start=1):
            if is_empty(text) and len(captions) > 1:
                self._keep(row, Fault(f"caption {number} is empty", "on_empty_caption"), of_caption)
        if all(is_empty(text) for text in captions):
            return Fault("the image has no caption" if captions else "no caption names the image", "on_empty_caption")
        return None

    def _keep(self, row: Mapping[str, Any], fault: Fault, number: int | None = None) -> bool:
        """List a bad row; returns whether it is used all the same, with its text or image left blank."""
        number, name = number or row["row"], row["id"]
        section = self.section
        policies = {"on_bad_row": section.on_bad_row, "on_bad_image": section.on_bad_image}
        policy = policies.get(fault.key, section.on_empty_text)
        if policy == "raise":
            named = "" if name == str(number) else f" (id {name})"
            way_out = f"{_WAYS_OUT[fault.key]} goes on without it"
            raise InputError(f"{self.part.origin}, row {number}{named}: {fault.reason}; {way_out}")
        self.bad_examples.append(BadExample(self.split, number, name, fault.reason))
        return policy in ("blank", "mask")

    def _with_usable_image(self, positions: NDArray[np.int64], read: bool) -> NDArray[np.int64]:
        usable = np.ones(len(positions), dtype=bool)
        for number, fault in enumerate(self._image_faults(positions, read)):
            if fault is not None:
                usable[number] = self._image_is_usable(int(positions[number]), fault)
        self.part.images.keep_findings()
        return positions[usable]

    def _image_faults(self, positions: NDArray[np.int64], read: bool) -> Iterator[ImageFault | None]:
        chunks = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]
        given = self._table.column("image_fault") if "image_fault" in self._table.column_names else None

        def check_chunk(chunk: NDArray[np.int64]) -> list[ImageFault | None]:
            found = self.part.images.find_faults(self._images[chunk.tolist()]["image"], read=read)
            if given is not None:
                reasons = given.take(pa.array(chunk)).to_pylist()
                found = [ImageFault(reason) if reason else fault for reason, fault in zip(reasons, found, strict=True)]
            return found

        label = f"checking {self.split} images" if len(positions) > _PROGRESS_ABOVE else None
        yield from chain.from_iterable(map_in_threads(check_chunk, chunks, label=label))

    def _image_is_usable(self, position: int, fault: ImageFault) -> bool:
        row = self._table.slice(position, 1).to_pylist()[0]
        if fault.kind == "row":
            return self._keep(row, Fault(fault.reason, "on_bad_row"))
        if not self._keep(row, Fault(fault.reason, "on_bad_image")):
            return False
        may_lack_one = "mask" in (self.section.on_bad_image, self.section.on_empty_text)
        if self.reading.text and may_lack_one and row["text"] is None:
            self.bad_examples.append(BadExample(self.split, row["row"], row["id"], "neither image nor text is left"))
            return False
        self._blank_images.append(position)
        return True

    def _make_table(self, positions: NDArray[np.int64], groups: str | None) -> datasets.Dataset:
        rows = self._table.take(pa.array(positions))
        columns: dict[str, Any] = {name: rows.column(name) for name in ("row", "id")}
        if self.target is not None:
            count = len(positions)
            text = pc.fill_null(rows.column("text"), "") if self.reading.text else pa.array([""] * count, pa.string())
            columns.update({"text": text, self.target.column: self.target.encode(rows)})
        else:
            columns["captions"] = _clean(rows.column("captions").combine_chunks())
        for name in self.reading.extra_columns:
            columns[extra_column(name)] = rows.column(extra_column(name))
        if groups is not None:
            columns[GROUP_COLUMN] = rows.column(groups)
        feature = self.part.images.feature
        stored = self._images.data.column("image")
        if stored.nbytes > _COPIED_BELOW:
            return self._choose_in_place(columns, positions)
        images = self.part.images.locate(_structs(stored.take(pa.array(positions))))
        if self._blank_images:
            blank = pa.array(np.isin(positions, self._blank_images))
            none = pa.StructArray.from_arrays(
                [pa.nulls(len(positions), pa.string()), pa.nulls(len(positions), pa.binary())], fields=list(IMAGE_TYPE)
            )
            images = pc.if_else(blank, none, images)
        columns = {"row": columns.pop("row"), "id": columns.pop("id"), "image": images, **columns}
        features = datasets.Features.from_arrow_schema(pa.table(columns).schema)
        features["image"] = feature
        return datasets.Dataset(pa.table(columns).cast(features.arrow_schema), datasets.DatasetInfo(features=features))

    def _choose_in_place(self, columns: dict[str, Any], positions: NDArray[np.int64]) -> datasets.Dataset:
        """Choose rows last: to take them out of the images' column would copy every image."""
        images = self._images
        if not isinstance(self.part.images, EmbeddedImages):
            chunks = [self.part.images.locate(_structs(chunk)) for chunk in images.data.column("image").chunks]
            images = datasets.Dataset(pa.table({"image": pa.chunked_array(chunks, IMAGE_TYPE)}), fingerprint="images")
        places = np.zeros(len(images), dtype=np.int64)
        places[positions] = np.arange(len(positions))
        unused = np.ones(len(images), dtype=bool)
        unused[positions] = False
        full = datasets.Dataset(pa.table(columns).take(pa.array(places, mask=unused)))
        table = datasets.concatenate_datasets([images, full], axis=1)
        table = table.select_columns(["row", "id", "image", *(name for name in columns if name not in ("row", "id"))])
        return table.select(positions) if len(positions) < len(images) else table

    def _nothing_left(self) -> str:
        origin = f"{self.part.origin}: the split {self.split!r}"
        if not len(self.positions):
            return f"{origin} has no rows"
        first = self.bad_examples[0]
        return f"{origin} has {len(self.positions)} rows and none can be used; row {first.row}: {first.reason}"


def _structs(images: pa.ChunkedArray | pa.StructArray) -> pa.StructArray:
    """A column of images with its fields in our order."""
    array = images.combine_chunks() if isinstance(images, pa.ChunkedArray) else images
    path, content = pc.struct_field(array, "path"), pc.struct_field(array, "bytes")
    return pa.StructArray.from_arrays([path, content], fields=list(IMAGE_TYPE))


def _clean(captions: pa.ListArray) -> pa.ListArray:
    """Captions without empty ones, stripped."""
    texts = captions.flatten()
    if not pc.any(empty_captions(texts)).as_py():
        lengths = pc.list_value_length(captions).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, pc.utf8_trim_whitespace(texts))
    return pa.array([clean_captions(of_image) for of_image in captions.to_pylist()], CAPTIONS_TYPE)
