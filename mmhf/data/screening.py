"""Which rows of a split are used: labels, texts and images judged, each bad one named with its reason."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.progress import track

from mmhf.data.bad_examples import BadExample
from mmhf.data.rows import ImageProblem, SourceRows
from mmhf.errors import InputError
from mmhf.recipe.schema import DataSectionBase

logger = logging.getLogger(__name__)

_CHUNK = 256
_PROGRESS_ABOVE = 20_000


class SplitScreen:
    """Judges the rows of one split by the recipe's choices.

    Args:
        source (`SourceRows`):
            The rows.
        split (`str`):
            The split's name, for messages.
        section (`DataSectionBase`):
            `on_bad_row`, `on_empty_text`, `on_bad_image`, `limit` and `limit_seed` are read.
        label_ids (`dict[str, int]`):
            Label value → class id.
        with_text (`bool`, defaults to `True`):
            Rows have texts; otherwise these are not judged, and the column is the empty string.
    """

    def __init__(
        self,
        source: SourceRows,
        split: str,
        section: DataSectionBase,
        label_ids: dict[str, int],
        *,
        with_text: bool = True,
    ) -> None:
        self.source = source
        self.split = split
        self.section = section
        self.label_ids = label_ids
        self.with_text = with_text
        self.bad_examples: list[BadExample] = []
        self._blank_images: set[int] = set()

    def run(self, *, check_images: bool = True) -> datasets.Dataset:
        """Judge the rows and make the table of those that are used.

        Args:
            check_images (`bool`, defaults to `True`):
                Look into the images to find broken ones.

        Returns:
            `datasets.Dataset`: the columns of `ROW_FEATURES`, in the order of the source.

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
        source, section = self.source, self.section
        if position in source.malformed:
            return self._drop(position, source.malformed[position], "on_bad_row", section.on_bad_row)
        label = source.labels[position]
        if label not in self.label_ids:
            reason = "the label is missing" if label is None else f"unknown label {label!r}"
            return self._drop(position, reason, "on_bad_row", section.on_bad_row)
        if self.with_text and not (source.texts[position] or "").strip():
            return self._drop(position, "the text is empty", "on_empty_text", section.on_empty_text)
        return True

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

        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            results = pool.map(check_chunk, chunks)
            if len(positions) > _PROGRESS_ABOVE:
                console = Console(stderr=True)
                label = f"checking {self.split} images"
                results = iter(track(results, label, total=len(chunks), console=console, transient=True))
            yield from chain.from_iterable(results)

    def _image_is_usable(self, position: int, problem: ImageProblem) -> bool:
        if problem.kind == "row":
            return self._drop(position, problem.reason, "on_bad_row", self.section.on_bad_row)
        keep = self._drop(position, problem.reason, "on_bad_image", self.section.on_bad_image)
        if keep:
            self._blank_images.add(position)
        return keep

    def _drop(self, position: int, reason: str, key: str, policy: str) -> bool:
        """List a bad row; returns whether it is used all the same, with its text or image left blank."""
        row, name = self.source.rows[position], self.source.ids[position]
        if policy == "raise":
            way_out = "data.on_bad_row=skip" if key == "on_bad_row" else f"data.{key}=skip or blank"
            named = "" if name == str(row) else f" (id {name})"
            raise InputError(f"{self.source.origin}, row {row}{named}: {reason}; {way_out} goes on without it")
        self.bad_examples.append(BadExample(self.split, row, name, reason))
        return policy == "blank"

    def _table(self, positions: list[int]) -> datasets.Dataset:
        source = self.source
        columns: dict[str, list[Any]] = {
            "row": [source.rows[position] for position in positions],
            "id": [source.ids[position] for position in positions],
            "text": [(source.texts[position] or "").strip() if self.with_text else "" for position in positions],
            "label": [self.label_ids[source.labels[position] or ""] for position in positions],
        }
        if self.bad_examples:
            logger.warning("%s: %d bad rows in %s", self.source.origin, len(self.bad_examples), self.split)
        return source.images.to_dataset(positions, self._blank_images, columns)

    def _nothing_left(self) -> str:
        origin = f"{self.source.origin}: the split {self.split!r}"
        if not len(self.source):
            return f"{origin} has no rows"
        first = self.bad_examples[0]
        return f"{origin} has {len(self.source)} rows and none can be used; row {first.row}: {first.reason}"
