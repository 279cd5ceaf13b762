"""Building blocks of a report. Each returns HTML in which everything that was handed in is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from PIL import Image

THUMBNAIL_SIDE = 160
"""Longest side of a gallery's image, in pixels."""
_MAX_TEXT = 280


@dataclass(frozen=True, kw_only=True)
class GalleryCard:
    """One example of a gallery.

    Attributes:
        image (`PIL.Image.Image`, *optional*): any size and mode; None where it cannot be read.
        text (`str`): cut after 280 characters.
        facts (`Mapping[str, str]`): what stands below, name -> value.
        wrong (`str`, *optional*): the fact to be set in red.
    """

    image: Image.Image | None
    text: str
    facts: Mapping[str, str]
    wrong: str | None = None


def escape(value: object) -> str:
    """Text that is safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def format_value(value: object) -> str:
    """A value as a reader wants it: 4 decimals, thousands separators, a dash for None. Not yet escaped."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        number = float(value)
        return f"{number:.4f}" if number == 0 or 1e-3 <= abs(number) < 1e5 else f"{number:.4g}"
    return str(value)


def paragraph(text: str, *, kind: str | None = None) -> str:
    """A paragraph; `kind` is `note` or `nothing` (both grey)."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def subheading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def code_block(text: str) -> str:
    """Text as it is, in a fixed-width font."""
    return f"<pre>{escape(text)}</pre>"


def folded(summary: str, inner_html: str) -> str:
    """HTML that is shown when a reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{inner_html}</details>"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, definition: str | None = None) -> str:
    """A table whose first column names the rows.

    Args:
        columns (`Sequence[str]`): headings; a row of empty ones is left out.
        rows (`Sequence[Sequence[object]]`): one value a column; a column that holds only numbers (and None) is set
            right-aligned.
        definition (`str`, *optional*): the column of sentences, set small.
    """
    numeric = [_is_numeric([row[at] for row in rows]) for at in range(len(columns))]
    classes = [
        ' class="number"' if numeric[at] else ' class="definition"' if name == definition else ""
        for at, name in enumerate(columns)
    ]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, classes, strict=True))
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = "\n".join(f"<tr>{_cells(row, classes)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{header}<tbody>\n{body}\n</tbody></table></div>'


def _cells(row: Sequence[object], classes: Sequence[str]) -> str:
    first, *rest = (escape(format_value(value)) for value in row)
    cells = "".join(f"<td{kind}>{value}</td>" for value, kind in zip(rest, classes[1:], strict=True))
    return f'<th scope="row">{first}</th>{cells}'


def _is_numeric(values: Sequence[object]) -> bool:
    given = [value for value in values if value is not None]
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in given)


def matrix_table(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A square matrix of counts: rows are labels, columns are predictions, the diagonal is marked."""
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    lines = []
    for at, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        cells = "".join(
            f'<td class="number{" right" if column == at else ""}">{int(count):,}</td>'
            for column, count in enumerate(counts)
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    corner = "<th>label ↓ prediction →</th>"
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr>{corner}{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(png: str | Path, caption: str) -> str:
    """A PNG file, embedded, with a caption that also describes it to a screen reader."""
    data = base64.b64encode(Path(png).read_bytes()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def gallery(cards: Sequence[GalleryCard]) -> str:
    """Examples side by side: a thumbnail, a text and facts each."""
    return f'<div class="gallery">{"".join(_card(card) for card in cards)}</div>'


def _card(card: GalleryCard) -> str:
    picture = f'<img alt="" src="{thumbnail(card.image)}">' if card.image is not None else "no readable image"
    text = card.text if len(card.text) <= _MAX_TEXT else card.text[: _MAX_TEXT - 1] + "…"
    words = f"<p>{escape(text)}</p>" if text else '<p class="nothing">(no text)</p>'
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd{' class=wrong' if name == card.wrong else ''}>{escape(value)}</dd>"
        for name, value in card.facts.items()
    )
    return f'<div class="card"><div class="image">{picture}</div><div class="body">{words}<dl>{facts}</dl></div></div>'


def thumbnail(image: Image.Image) -> str:
    """A JPEG data URI of at most 160 × 160 pixels; the image itself stays as it is."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
