"""What a search found, as one HTML page of small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mmhf.evaluation.markup import GalleryCard, gallery, paragraph
from mmhf.evaluation.report import ReportSection, write_report

_MAX_FACTS = 6


class Found(Protocol):
    """A row that a search found."""

    @property
    def row(self) -> int:
        """Its number, from 0."""
        ...

    @property
    def score(self) -> float:
        """Its similarity to the query."""
        ...

    @property
    def values(self) -> dict[str, Any]:
        """The row."""
        ...

    @property
    def image(self) -> Image.Image | None:
        """Its image, where there is one."""
        ...


def write_contact_sheet(
    path: str | Path, found: Mapping[str, Sequence[Found]], *, title: str, text_column: str | None = None
) -> None:
    """Write a self-contained page, atomically.

    Args:
        path (`str` or `Path`): The HTML file.
        found (`Mapping[str, Sequence[Found]]`): Query -> rows, the nearest first.
        title (`str`): Plain text.
        text_column (`str`, *optional*): The column to set below each picture.
    """
    sections = []
    for query, hits in found.items():
        cards = [_card(rank, hit, text_column) for rank, hit in enumerate(hits, 1)]
        body = gallery(cards) if cards else paragraph("Nothing was found.", kind="nothing")
        sections.append(ReportSection(query, body))
    write_report(path, sections, title, f"{len(found)} {'query' if len(found) == 1 else 'queries'}")


def _card(rank: int, hit: Found, text_column: str | None) -> GalleryCard:
    shown = {
        name: str(value)
        for name, value in hit.values.items()
        if name not in (text_column, "error") and value is not None
    }
    facts = {"rank": str(rank), "similarity": f"{hit.score:.4f}", **dict(list(shown.items())[:_MAX_FACTS])}
    text = str(hit.values.get(text_column) or "") if text_column else ""
    return GalleryCard(image=hit.image, text=text, facts=facts)
