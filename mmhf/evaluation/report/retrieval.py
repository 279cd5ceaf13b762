"""The report of a dual encoder, and the contact sheet of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mmhf.evaluation.report.page import Card, Figure, Gallery, Section, write_page
from mmhf.evaluation.report.sections import (
    RunFacts,
    closing_sections,
    curves_section,
    gallery_section,
    ignored_notes,
    metrics_section,
    table_sections,
    trained_section,
    write_numbers,
    write_report,
)
from mmhf.evaluation.report.verdict import judged_split, retrieval_verdict
from mmhf.evaluation.results import SplitTables
from mmhf.evaluation.retrieval.embedding_view import EmbeddingView
from mmhf.evaluation.retrieval.metrics import RETRIEVAL_PROTOCOLS, UNIQUE_TEXT_PROTOCOLS, RetrievalEvaluation
from mmhf.evaluation.retrieval.plots import save_retrieval_plots
from mmhf.evaluation.retrieval.zero_shot import ZERO_SHOT_PROTOCOLS
from mmhf.files import PLOTS_FOLDER

_PROTOCOLS = {**RETRIEVAL_PROTOCOLS, **UNIQUE_TEXT_PROTOCOLS, **ZERO_SHOT_PROTOCOLS}
_MAX_FACTS = 6
_CAPTION_COLUMNS = ("caption", "captions", "text", "title", "references", "comment", "caption_1")
"""Where a caption stands in a table whose texts were not embedded, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class RetrievalExample:
    """A caption whose image is found late, as a person looks at it; `image` is None where it cannot be read."""

    id: str
    image: Image.Image | None
    caption: str
    rank: int
    found_instead: str
    """The caption, or name, of the image that stands first."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRetrieval:
    """What evaluating one split gave.

    Attributes:
        evaluation (`RetrievalEvaluation`): The numbers.
        loss (`float`, *optional*): That of the recipe.
        examples (`Sequence[RetrievalExample]`, *optional*): See `worst_captions`; None = no gallery.
        zero_shot (`Mapping[str, float]`): Numbers of zero-shot classification, where it was asked for.
        prefixes (`Mapping[str, float]`): What `prefix_recalls` gives, where embeddings were trained for it.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
        tables (`Mapping`): Title → rows of further numbers, such as those of each data set.
        view (`EmbeddingView`, *optional*): Embeddings in two dimensions, to look at.
    """

    evaluation: RetrievalEvaluation
    loss: float | None = None
    examples: Sequence[RetrievalExample] | None = None
    zero_shot: Mapping[str, float] = field(default_factory=dict)
    prefixes: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tables: SplitTables = field(default_factory=dict)
    view: EmbeddingView | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's flat numbers."""
        loss = {} if self.loss is None else {"loss": self.loss}
        return {**loss, **self.evaluation.metrics, **self.prefixes, **self.zero_shot}

    @property
    def num_rows(self) -> int:
        """Captions that were evaluated."""
        return len(self.evaluation.captions)


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


def worst_captions(evaluation: RetrievalEvaluation, *, count: int = 24) -> list[tuple[int, int]]:
    """(row of the caption, rank of its image) of the captions whose image is found last, the worst first.

    Of each rank the earlier caption stands first; captions whose image stands first are never among them.
    """
    order = np.argsort(-evaluation.image_ranks, kind="stable")[:count]
    return [
        (int(evaluation.captions[at]), int(evaluation.image_ranks[at]))
        for at in order
        if evaluation.image_ranks[at] > 1
    ]


def write_retrieval_report(
    run: RunFacts, measured: Mapping[str, MeasuredRetrieval], *, protocols: Mapping[str, str] = _PROTOCOLS
) -> None:
    """Write `plots/*.png`, `report.html`, `evaluation.json` and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredRetrieval]`): By split.
        protocols (`Mapping[str, str]`): Each metric's definition.
    """
    evaluations = {split: each.evaluation for split, each in measured.items()}
    folder = run.folder / PLOTS_FOLDER
    views = {split: each.view for split, each in measured.items() if each.view is not None}
    plots = save_retrieval_plots(
        folder, evaluations, views=views, log_history=run.log_history, best_metric=run.best_metric
    )
    verdict = None
    if (judged := judged_split(measured)) is not None:
        verdict = retrieval_verdict(run, judged[0], judged[1].evaluation, baselines=judged[1].baselines)
    write_report(run, retrieval_sections(run, measured, plots=plots, protocols=protocols), verdict)
    write_numbers(run, measured, protocols, {split: each.tables for split, each in measured.items()})


def retrieval_sections(
    run: RunFacts,
    measured: Mapping[str, MeasuredRetrieval],
    *,
    plots: Mapping[str, Path] | None = None,
    protocols: Mapping[str, str] = _PROTOCOLS,
) -> list[Section]:
    """The sections of a dual encoder's report.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredRetrieval]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): What `save_retrieval_plots` returned.
        protocols (`Mapping[str, str]`): Each metric's definition.
    """
    figures = plots or {}
    sections = [trained_section(run), _metrics(measured, protocols), *curves_section(figures)]
    for split in measured:
        if f"{split}_recall" in figures:
            caption = f"Share of queries answered within the first k results, {split} split; dashed: by chance."
            sections.append(Section(f"Recall: {split}", [Figure(figures[f"{split}_recall"], caption)]))
        if f"{split}_embeddings" in figures:
            sections.append(_embeddings(split, measured[split], figures[f"{split}_embeddings"]))
    sections += [_late_finds(split, each.examples) for split, each in measured.items() if each.examples is not None]
    sections += table_sections({split: each.tables for split, each in measured.items()})
    return [*sections, *closing_sections(run)]


def _metrics(measured: Mapping[str, MeasuredRetrieval], protocols: Mapping[str, str]) -> Section:
    evaluations = {split: each.evaluation for split, each in measured.items()}
    counts = {
        "images": ({split: each.num_images for split, each in evaluations.items()}, "Among which captions search."),
        "captions": ({split: len(each.captions) for split, each in evaluations.items()}, "Among which images search."),
    }
    return metrics_section(
        {split: each.metrics for split, each in measured.items()},
        protocols,
        counts=counts,
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=ignored_notes(evaluations, "captions have no readable image"),
    )


def _embeddings(split: str, measured: MeasuredRetrieval, figure: Path) -> Section:
    assert measured.view is not None
    caption = (
        f"{len(measured.view.rows):,} images with their first captions, on their first two principal components. "
        f"Their means over all lie {measured.evaluation.metrics['modality_gap']:.2f} apart (modality_gap); a gap is "
        "usual, and need not harm a search, which compares each image with captions alone."
    )
    return Section(f"Embeddings: {split}", [Figure(figure, caption)])


def _late_finds(split: str, examples: Sequence[RetrievalExample]) -> Section:
    cards = [
        Card(
            image=each.image,
            text=each.caption,
            facts={"rank": f"{each.rank:,}", "found instead": each.found_instead, "id": each.id},
            wrong="rank",
        )
        for each in examples
    ]
    note = "Each image with the caption that should have found it. Many of them can point to captions that do not fit."
    nothing = "None: every caption finds its image first."
    return gallery_section(f"Captions whose image is found last: {split}", cards, note=note, nothing=nothing)


def write_contact_sheet(
    path: str | Path, found: Mapping[str, Sequence[Found]], *, title: str, text_column: str | None = None
) -> None:
    """Write what a search found as a self-contained page of small pictures, whole or not at all.

    Args:
        path (`str` or `Path`): The HTML file.
        found (`Mapping[str, Sequence[Found]]`): Query → rows, the nearest first.
        title (`str`): Plain text.
        text_column (`str`, *optional*): The column to set below each picture; absent: the first that is named as
            captions usually are, such as `caption` or `text`.
    """
    galleries = {
        query: Gallery([_card(rank, hit, text_column) for rank, hit in enumerate(hits, 1)])
        for query, hits in found.items()
    }
    subtitle = f"{len(found)} {'query' if len(found) == 1 else 'queries'}"
    write_page(path, "contact_sheet.html", title=title, subtitle=subtitle, found=galleries)


def _card(rank: int, hit: Found, text_column: str | None) -> Card:
    column = text_column or next((name for name in _CAPTION_COLUMNS if hit.values.get(name)), None)
    text = hit.values.get(column) if column else None
    if isinstance(text, Sequence) and not isinstance(text, str):
        text = text[0] if len(text) else None
    facts = {"rank": str(rank), "similarity": f"{hit.score:.4f}"}
    shown = [name for name, value in hit.values.items() if name not in (column, "error") and value is not None]
    facts |= {name: str(hit.values[name]) for name in shown[:_MAX_FACTS]}
    return Card(image=hit.image, text=None if column is None else str(text or ""), facts=facts)
