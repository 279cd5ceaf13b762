"""Pages without network or script: blocks of content, and the templates that set them.

Python says what a page holds, in plain values; all markup is in `templates/`, where jinja2 escapes every value.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import jinja2
import numpy as np
from PIL import Image

from mmhf.data.images import BadImageError, ImageInput, decode_image
from mmhf.files import write_text

THUMBNAIL_SIDE = 160
"""Longest side of a gallery's image, in pixels."""
_MAX_TEXT = 280
_WIDE = 900
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph; `note` and `nothing` are grey, `note` is small too."""

    macro: ClassVar[str] = "text"
    text: str
    kind: Literal["note", "nothing"] | None = None


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    macro: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Code:
    """Text as it is, in a fixed-width font."""

    macro: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        columns (`Sequence[str]`): Headings; a row of empty ones is left out.
        rows (`Sequence[Sequence[object]]`): One value a column; a column of numbers (and None) is set to the right.
        definition (`str`, *optional*): The column of sentences, set small.
    """

    macro: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    definition: str | None = None

    @classmethod
    def of(cls, columns: Mapping[str, str], rows: Iterable[Mapping[str, object]]) -> Table:
        """Rows that are mappings; `columns` names the key below each heading."""
        return cls(list(columns), [[row[key] for key in columns.values()] for row in rows])

    @property
    def kinds(self) -> list[str]:
        """`number`, `definition` or nothing for each column."""
        kinds = []
        for at, name in enumerate(self.columns):
            values = [row[at] for row in self.rows if row[at] is not None]
            is_numeric = all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
            kinds.append("number" if is_numeric else "definition" if name == self.definition else "")
        return kinds


@dataclass(frozen=True)
class Matrix:
    """A square matrix of counts: rows are labels, columns are predictions, the diagonal is marked."""

    macro: ClassVar[str] = "matrix"
    counts: Sequence[Sequence[int]]
    names: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A PNG file, embedded, with a caption that also describes it to a screen reader."""

    macro: ClassVar[str] = "figure"
    png: Path
    caption: str

    @property
    def is_wide(self) -> bool:
        """Whether it would be too small to read at the width of a phone, and is scrolled there."""
        with Image.open(self.png) as image:
            return image.width > _WIDE


@dataclass(frozen=True, kw_only=True)
class Card:
    """One example of a gallery.

    Attributes:
        image (`PIL.Image.Image`, *optional*): Any size and mode; None where it cannot be read.
        text (`str`, *optional*): Cut after 280 characters; None where examples have none to begin with.
        facts (`Mapping[str, str]`): What stands below, name → value.
        wrong (`str`, *optional*): The fact to be set in red.
    """

    image: Image.Image | None
    text: str | None
    facts: Mapping[str, str]
    wrong: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Examples side by side: a thumbnail, a text and facts each."""

    macro: ClassVar[str] = "gallery"
    cards: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class CaptionExample:
    """One image of a gallery of captions.

    Attributes:
        id (`str`): Its name in the data.
        image (`PIL.Image.Image`, *optional*): Any size and mode; None where it cannot be read.
        generated (`str`): The caption, maybe empty.
        references (`Sequence[str]`): None for an image that nobody has described.
        scores (`Mapping[str, float]`): Metric → value for this image, the same metrics in every example.
    """

    id: str
    image: Image.Image | None
    generated: str
    references: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Captions:
    """Images with their captions, references and scores, and a choice of orders: the data's, and by each score.

    The order is made by the style sheet alone, because a page allows no script.

    Attributes:
        examples (`Sequence[CaptionExample]`): In the order of the data.
        name (`str`): Distinguishes several of one page.

    Raises:
        ValueError: The examples have different scores.
    """

    macro: ClassVar[str] = "captions"
    examples: Sequence[CaptionExample]
    name: str = "captions"

    def __post_init__(self) -> None:
        if any(list(example.scores) != self.scores for example in self.examples):
            raise ValueError("the examples of a gallery have different scores")

    @property
    def scores(self) -> list[str]:
        """Names of the scores."""
        return list(self.examples[0].scores) if self.examples else []

    @property
    def ranks(self) -> list[list[int]]:
        """For each example, its place by each score, the highest value on place 1."""
        places = np.empty((len(self.examples), len(self.scores)), dtype=int)
        for at, score in enumerate(self.scores):
            order = np.argsort([-example.scores[score] for example in self.examples], kind="stable")
            places[order, at] = np.arange(1, len(order) + 1)
        return places.tolist()


@dataclass(frozen=True)
class Folded:
    """A block that is shown when a reader opens it."""

    macro: ClassVar[str] = "folded"
    summary: str
    block: Table | Matrix | Code


Block = Text | Heading | Code | Table | Matrix | Figure | Gallery | Captions | Folded


@dataclass(frozen=True)
class Section:
    """A part of a page: its title and what it holds."""

    title: str
    blocks: Sequence[Block]


def render_blocks(blocks: Sequence[Block]) -> str:
    """HTML of blocks, for a page of one's own or a notebook's cell."""
    rendered: str = _environment().get_template("blocks.html").module.blocks(blocks)  # type: ignore[attr-defined]
    return rendered


def write_page(path: str | Path, template: str, **values: object) -> None:
    """Fill a template of `templates/` and write the page, whole or not at all.

    Args:
        path (`str` or `Path`): The HTML file.
        template (`str`): `report.html`, `caption_gallery.html` or `contact_sheet.html`.
        values: What it shows; each template says at its top what that is.
    """
    write_text(path, _environment().get_template(template).render(values))


def format_value(value: object) -> str:
    """A value as a reader wants it: 4 decimals, thousands separators, a dash for None. Not escaped."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        number = float(value)
        if 0 < abs(number) < 5e-5:
            return "< 0.0001" if number > 0 else "> -0.0001"
        return f"{number:.4f}" if abs(number) < 1e5 else f"{number:.4g}"
    return str(value)


def small_image(image: ImageInput) -> Image.Image | None:
    """An image at the size a gallery shows, so that many fit in memory; None where it cannot be read."""
    try:
        small = decode_image(image, least_side=THUMBNAIL_SIDE)
    except BadImageError:
        return None
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return small


def row_cards(rows: Iterable[Mapping[str, Any]], facts: Iterable[Mapping[str, str]]) -> list[Card]:
    """Rows of a data set as a gallery shows them.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): With `id`, `image` and `text`; where none has a text, cards have none.
        facts (`Iterable[Mapping[str, str]]`): What to say of each row, its id aside; the first is what is wrong.
    """
    rows = list(rows)
    has_texts = any(row["text"] for row in rows)
    return [
        Card(
            image=small_image(row["image"]),
            text=row["text"] if has_texts else None,
            facts={**about, "id": row["id"]},
            wrong=next(iter(about)),
        )
        for row, about in zip(rows, facts, strict=True)
    ]


def thumbnail(image: Image.Image) -> str:
    """A JPEG data URI of at most 160 × 160 pixels; the image itself stays as it is."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _embedded_png(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(value=format_value, thumbnail=thumbnail, png=_embedded_png, cut=_cut)
    return environment
