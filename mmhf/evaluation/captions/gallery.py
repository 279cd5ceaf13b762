"""Images with their generated captions, references and scores, sortable without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from mmhf.data.images import BadImageError, ImageInput, decode_image
from mmhf.evaluation.captions.metrics import CaptionEvaluation
from mmhf.evaluation.captions.protocols import CAPTION_PROTOCOLS
from mmhf.evaluation.markup import THUMBNAIL_SIDE, escape, format_value, paragraph, table, thumbnail
from mmhf.evaluation.report import ReportSection, write_report

_STYLE = """
.captions { display: flex; flex-direction: column; gap: 10px; margin-top: 12px; }
.captions .row { display: grid; grid-template-columns: 168px 1fr 190px; gap: 14px; border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; break-inside: avoid; font-size: 13.5px; }
.captions .image { background: var(--soft); min-height: 100px; display: flex; align-items: center;
  justify-content: center; color: var(--muted); }
.captions img { max-width: 160px; max-height: 160px; }
.captions .words { padding: 10px 0; overflow-wrap: anywhere; }
.captions .generated { font-size: 15px; font-weight: 600; margin: 0 0 6px; }
.captions ul { margin: 0; padding-left: 18px; color: var(--muted); }
.captions dl { margin: 0; padding: 10px 12px; display: grid; grid-template-columns: 1fr auto; gap: 1px 10px;
  align-content: start; font-variant-numeric: tabular-nums; }
.captions dt { color: var(--muted); }
.captions dd { margin: 0; text-align: right; }
.captions .id { grid-column: 1 / -1; color: var(--muted); font-size: 12px; overflow-wrap: anywhere; text-align: left; }
.sort input { position: absolute; opacity: 0; }
.sort > label { display: inline-block; border: 1px solid var(--line); border-radius: 999px; padding: 2px 12px;
  margin: 0 4px 6px 0; font-size: 13px; cursor: pointer; }
.sort > input:checked + label { background: var(--accent); border-color: var(--accent); color: #fff; }
.sort > input:focus-visible + label { outline: 2px solid var(--ink); }
@media (max-width: 700px) { .captions .row { grid-template-columns: 1fr; } }
@media print { .sort > label { display: none; } }
"""


GALLERY_SCORES = ("rougeL", "cider", "clipscore")
"""Scores that a gallery shows where they were measured; more would crowd it."""


@dataclass(frozen=True, kw_only=True)
class CaptionExample:
    """One image of a gallery.

    Attributes:
        id (`str`): Its name in the data.
        image (`PIL.Image.Image`, *optional*): Any size and mode; None where it cannot be read.
        generated (`str`): The caption, maybe empty.
        references (`Sequence[str]`): None for an image that nobody has described.
        scores (`Mapping[str, float]`): Metric -> value for this image, the same metrics in every example.
    """

    id: str
    image: Image.Image | None
    generated: str
    references: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


def scores_of_image(evaluation: CaptionEvaluation, row: int) -> dict[str, float]:
    """What a gallery shows of one image: its `GALLERY_SCORES`."""
    return {name: float(evaluation.per_image[name][row]) for name in GALLERY_SCORES if name in evaluation.per_image}


def small_image(image: ImageInput) -> Image.Image | None:
    """An image at the size a gallery shows, so that many fit in memory; None where it cannot be read."""
    try:
        small = decode_image(image, least_side=THUMBNAIL_SIDE)
    except BadImageError:
        return None
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return small


def spread_rows(scores: ArrayLike, *, count: int = 48) -> list[int]:
    """Rows evenly spread over the ranking by a score, the best and the worst among them, the best first.

    Args:
        scores (`ArrayLike` of shape `(N,)`): such as `CaptionEvaluation.per_image["rougeL"]`.
        count (`int`, *optional*, defaults to 48): how many to return at most.
    """
    ranking = np.argsort(-np.asarray(scores), kind="stable")
    if len(ranking) <= count:
        return ranking.tolist()
    return ranking[np.linspace(0, len(ranking) - 1, count).round().astype(int)].tolist()


def write_caption_gallery(
    path: str | Path, examples: Sequence[CaptionExample], *, title: str = "Captions", subtitle: str = ""
) -> None:
    """Write a self-contained page of all examples, atomically.

    Args:
        path (`str` or `Path`): the HTML file.
        examples (`Sequence[CaptionExample]`): in the order of the data.
        title, subtitle (`str`, *optional*): plain text.
    """
    sections = [ReportSection(f"{len(examples):,} images", caption_gallery(examples))]
    measured = [[name, CAPTION_PROTOCOLS.get(name, "")] for name in _score_names(examples)]
    if measured:
        scores = table(["score", "definition"], measured, definition="definition")
        note = "Scores here are of one image; those of BLEU are no mean of the corpus' BLEU."
        sections.append(ReportSection("What the scores are", scores + paragraph(note, kind="note")))
    write_report(path, sections, title, subtitle)


def caption_gallery(examples: Sequence[CaptionExample], *, name: str = "captions") -> str:
    """HTML of the examples, with a choice of orders: as in the data, and from the best or the worst by each score.

    The order is made by the style sheet alone, because a report's page allows no script.

    Args:
        examples (`Sequence[CaptionExample]`): in the order of the data.
        name (`str`, *optional*): distinguishes several galleries of one page.

    Raises:
        ValueError: The examples have different scores.
    """
    if not examples:
        return paragraph("There is no image.", kind="nothing")
    scores = _score_names(examples)
    if any(list(example.scores) != scores for example in examples):
        raise ValueError("the examples of a gallery have different scores")
    ranks = {score: _ranks([example.scores[score] for example in examples]) for score in scores}
    rows = "\n".join(
        _row(example, {score: places[at] for score, places in ranks.items()}) for at, example in enumerate(examples)
    )
    style = f"<style>{_STYLE}{_orders(name, len(scores))}</style>"
    return f'{style}<div class="sort">{_controls(name, scores)}<div class="captions">\n{rows}\n</div></div>'


def _score_names(examples: Sequence[CaptionExample]) -> list[str]:
    return list(examples[0].scores) if examples else []


def _ranks(values: Sequence[float]) -> list[int]:
    """The place of each value from the highest, 1, to the lowest."""
    ranks = np.empty(len(values), dtype=int)
    ranks[np.argsort(-np.asarray(values), kind="stable")] = np.arange(1, len(values) + 1)
    return ranks.tolist()


def _orders(name: str, num_scores: int) -> str:
    rules = [
        f"#{escape(name)}-{at}-{way}:checked ~ .captions .row {{ order: {order}; }}"
        for at in range(num_scores)
        for way, order in (("best", f"var(--rank-{at})"), ("worst", f"calc(-1 * var(--rank-{at}))"))
    ]
    return "\n".join(rules)


def _controls(name: str, scores: Sequence[str]) -> str:
    if not scores:
        return ""
    choices = {"data": "as in the data"}
    for at, score in enumerate(scores):
        choices |= {f"{at}-{way}": f"{score}, {way} first" for way in ("best", "worst")}
    group = escape(name)
    return "".join(
        f'<input type="radio" name="{group}" id="{group}-{key}"{" checked" if key == "data" else ""}>'
        f'<label for="{group}-{key}">{escape(label)}</label>'
        for key, label in choices.items()
    )


def _row(example: CaptionExample, ranks: Mapping[str, int]) -> str:
    places = ";".join(f"--rank-{at}:{rank}" for at, rank in enumerate(ranks.values()))
    picture = f'<img alt="" src="{thumbnail(example.image)}">' if example.image is not None else "no readable image"
    generated = escape(example.generated) if example.generated.strip() else '<span class="nothing">(empty)</span>'
    references = "".join(f'<li dir="auto">{escape(text)}</li>' for text in example.references)
    facts = "".join(
        f"<dt>{escape(score)}</dt><dd>{escape(format_value(float(value)))}</dd>"
        for score, value in example.scores.items()
    )
    return (
        f'<div class="row" style="{places}"><div class="image">{picture}</div>'
        f'<div class="words"><p class="generated" dir="auto">{generated}</p><ul>{references}</ul></div>'
        f'<dl>{facts}<dd class="id">{escape(example.id)}</dd></dl></div>'
    )
