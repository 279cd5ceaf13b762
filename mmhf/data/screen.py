"""Which rows of a split are used: labels, texts, captions and images judged, each bad one named with its reason."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import datasets
import numpy as np

from mmhf.data.bad_examples import BadExample
from mmhf.data.table import CaptionedRows, ImageProblem, LabelledRows, SourceRows, extra_column
from mmhf.errors import InputError
from mmhf.parallel import map_in_threads
from mmhf.recipe.schema import DataSectionBase

logger = logging.getLogger(__name__)

RowsT = TypeVar("RowsT", bound=SourceRows)

_CHUNK = 256
_PROGRESS_ABOVE = 20_000
_WAYS_OUT = {
    "on_bad_row": "data.on_bad_row=skip",
    "on_bad_image": "data.on_bad_image=skip or blank",
    "on_empty_text": "data.on_empty_text=skip or blank",
    "on_empty_caption": "data.on_empty_text=skip",
}


class Fault(NamedTuple):
    """What is wrong with a row, and which of the recipe's choices says what happens then."""

    reason: str
    key: Literal["on_bad_row", "on_bad_image", "on_empty_text", "on_empty_caption"]


class SplitScreen(ABC, Generic[RowsT]):
    """Judges the rows of one split by the recipe's choices.

    Args:
        source (`SourceRows`):
            The rows.
        split (`str`):
            The split's name, for messages.
        section (`DataSectionBase`):
            `on_bad_row`, `on_empty_text`, `on_bad_image`, `limit` and `limit_seed` are read.
    """

    def __init__(self, source: RowsT, split: str, section: DataSectionBase) -> None:
        self.source = source
        self.split = split
        self.section = section
        self.bad_examples: list[BadExample] = []
        self._blank_images: set[int] = set()

    @abstractmethod
    def _find_fault(self, position: int) -> Fault | None:
        """Judge what a row says of its image."""

    @abstractmethod
    def _columns(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of these rows beside number, name and image."""

    def run(self, *, check_images: bool = True) -> datasets.Dataset:
        """Judge the rows and make the table of those that are used.

        Args:
            check_images (`bool`, defaults to `True`):
                Look into the images to find broken ones.

        Returns:
            `datasets.Dataset`: the columns of `ROW_FEATURES` or `CAPTION_FEATURES`, in the order of the source.

        Raises:
            InputError: a bad row where the recipe says to raise, or no row is left.
        """
        positions = list(range(len(self.source)))
        limit = len(positions) if self.section.limit is None else self.section.limit
        if limit < len(positions):
            positions = np.random.default_rng(self.section.limit_seed).permutation(positions).tolist()
        chosen: list[int] = []
        start = 0
        # A row that cannot be used is replaced by the next, so that a limit is met wherever the data allows.
        while start < len(positions) and len(chosen) < limit:
            stop = start + limit - len(chosen)
            usable = [position for position in positions[start:stop] if self._row_is_usable(position)]
            chosen += self._with_usable_image(usable, check_images)
            start = stop
        self.bad_examples.sort()
        if not chosen:
            raise InputError(self._nothing_left())
        return self._table(sorted(chosen))

    def _row_is_usable(self, position: int) -> bool:
        if position in self.source.malformed:
            return self._drop(position, Fault(self.source.malformed[position], "on_bad_row"))
        fault = self._find_fault(position)
        return fault is None or self._drop(position, fault)

    def _with_usable_image(self, positions: Sequence[int], check: bool) -> list[int]:
        return [
            position
            for position, problem in zip(positions, self._image_problems(positions, check), strict=True)
            if problem is None or self._image_is_usable(position, problem)
        ]

    def _image_problems(self, positions: Sequence[int], check: bool) -> Iterator[ImageProblem | None]:
        without = self.source.without_image
        present = [position for position in positions if position not in without]
        found = self._find_problems(present, check)
        return (ImageProblem(without[position]) if position in without else next(found) for position in positions)

    def _find_problems(self, positions: Sequence[int], read: bool) -> Iterator[ImageProblem | None]:
        chunks = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]

        def check_chunk(chunk: Sequence[int]) -> list[ImageProblem | None]:
            return list(self.source.images.problems(chunk, read=read))

        label = f"checking {self.split} images" if len(positions) > _PROGRESS_ABOVE else None
        yield from chain.from_iterable(map_in_threads(check_chunk, chunks, label=label))

    def _image_is_usable(self, position: int, problem: ImageProblem) -> bool:
        if problem.kind == "row":
            return self._drop(position, Fault(problem.reason, "on_bad_row"))
        keep = self._drop(position, Fault(problem.reason, "on_bad_image"))
        if keep:
            self._blank_images.add(position)
        return keep

    def _policy(self, fault: Fault) -> str:
        section = self.section
        if fault.key == "on_bad_row":
            return section.on_bad_row
        return section.on_bad_image if fault.key == "on_bad_image" else section.on_empty_text

    def _drop(self, position: int, fault: Fault, row: int | None = None) -> bool:
        """List a bad row; returns whether it is used all the same, with its text or image left blank."""
        row, name = row or self.source.rows[position], self.source.ids[position]
        policy = self._policy(fault)
        if policy == "raise":
            named = "" if name == str(row) else f" (id {name})"
            way_out = f"{_WAYS_OUT[fault.key]} goes on without it"
            raise InputError(f"{self.source.origin}, row {row}{named}: {fault.reason}; {way_out}")
        self.bad_examples.append(BadExample(self.split, row, name, fault.reason))
        return policy in ("blank", "mask")

    def _table(self, positions: list[int]) -> datasets.Dataset:
        source = self.source
        columns: dict[str, list[Any]] = {
            "row": [source.rows[position] for position in positions],
            "id": [source.ids[position] for position in positions],
            **self._columns(positions),
        }
        if self.bad_examples:
            logger.warning("%s: %d bad rows in %s", source.origin, len(self.bad_examples), self.split)
        return source.images.to_dataset(positions, self._blank_images, columns)

    def _nothing_left(self) -> str:
        origin = f"{self.source.origin}: the split {self.split!r}"
        if not len(self.source):
            return f"{origin} has no rows"
        first = self.bad_examples[0]
        return f"{origin} has {len(self.source)} rows and none can be used; row {first.row}: {first.reason}"


class LabelScreen(SplitScreen[LabelledRows]):
    """Judges rows with a label, and a text where the task has one.

    Args:
        source, split, section:
            See [`SplitScreen`].
        label_ids (`dict[str, int]`):
            Label value → class id.
        with_text (`bool`, defaults to `True`):
            Rows have texts; otherwise these are not judged, and the column is the empty string.
    """

    def __init__(
        self,
        source: LabelledRows,
        split: str,
        section: DataSectionBase,
        *,
        label_ids: dict[str, int],
        with_text: bool = True,
    ) -> None:
        super().__init__(source, split, section)
        self.label_ids = label_ids
        self.with_text = with_text

    def _find_fault(self, position: int) -> Fault | None:
        label = self.source.labels[position]
        if label not in self.label_ids:
            return Fault("the label is missing" if label is None else f"unknown label {label!r}", "on_bad_row")
        if self.with_text and not (self.source.texts[position] or "").strip():
            return Fault("the text is empty", "on_empty_text")
        return None

    def _image_is_usable(self, position: int, problem: ImageProblem) -> bool:
        if not super()._image_is_usable(position, problem):
            return False
        may_lack_one = "mask" in (self.section.on_bad_image, self.section.on_empty_text)
        if not (self.with_text and may_lack_one) or (self.source.texts[position] or "").strip():
            return True
        row, name = self.source.rows[position], self.source.ids[position]
        self.bad_examples.append(BadExample(self.split, row, name, "neither image nor text is left"))
        return False

    def _columns(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        source = self.source
        return {
            "text": [(source.texts[position] or "").strip() if self.with_text else "" for position in positions],
            "label": [self.label_ids[source.labels[position] or ""] for position in positions],
            **{
                extra_column(name): [values[position] for position in positions]
                for name, values in source.extras.items()
            },
        }


class CaptionScreen(SplitScreen[CaptionedRows]):
    """Judges images with captions: an empty caption is left out, and an image without any other, too."""

    def _find_fault(self, position: int) -> Fault | None:
        name = self.source.ids[position]
        captions = self.source.captions[position]
        for number, caption in enumerate(captions, start=1):
            if caption.note is not None:
                self.bad_examples.append(BadExample(self.split, caption.row, name, caption.note))
            if is_empty(caption.text) and len(captions) > 1:
                self._drop(position, Fault(f"caption {number} is empty", "on_empty_caption"), caption.row)
        if all(is_empty(caption.text) for caption in captions):
            return Fault("the image has no caption" if captions else "no caption names the image", "on_empty_caption")
        return None

    def _columns(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        captions = self.source.captions
        return {"captions": [clean_captions(caption.text for caption in captions[place]) for place in positions]}


def is_empty(text: str | None) -> bool:
    """Whether a caption says nothing: it is absent, or all white space and invisible characters."""
    return text is None or not any(character.isprintable() and not character.isspace() for character in text)


def clean_captions(texts: Iterable[str | None]) -> list[str]:
    """Captions as they are used: without the empty ones, stripped, and with `?` for halves of characters.

    JSON can hold half of a UTF-16 pair, which no tokenizer takes.
    """
    return [
        text.strip().encode("utf-8", "replace").decode() for text in texts if text is not None and not is_empty(text)
    ]
