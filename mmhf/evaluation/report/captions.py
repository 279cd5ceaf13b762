"""The report of a captioner, and a gallery of captions on a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mmhf.evaluation.captions.metrics import BOOTSTRAP_PROTOCOL, CAPTION_PROTOCOLS, CaptionEvaluation
from mmhf.evaluation.curves import save_training_curves
from mmhf.evaluation.report.page import (
    Block,
    CaptionExample,
    Captions,
    Heading,
    Section,
    Table,
    Text,
    write_page,
)
from mmhf.evaluation.report.sections import (
    RunFacts,
    closing_sections,
    curves_section,
    metrics_section,
    table_sections,
    trained_section,
    write_numbers,
    write_report,
)
from mmhf.evaluation.report.verdict import caption_verdict, judged_split
from mmhf.evaluation.results import SplitTables
from mmhf.files import PLOTS_FOLDER

GALLERY_SCORES = ("vqa_accuracy", "rougeL", "cider", "clipscore")
"""Scores that a gallery shows where they were measured; more would crowd it."""


@dataclass(frozen=True)
class MeasuredCaptions:
    """What evaluating one split gave: its numbers, those of captions that need no captioner, and images to look at.

    Attributes:
        evaluation (`CaptionEvaluation`): The numbers.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → what `caption_metrics` says of it.
        examples (`Sequence[CaptionExample]`, *optional*): See `spread_rows`; None = no gallery.
        tables (`Mapping`): Title → rows of further numbers, such as those of each data set.
    """

    evaluation: CaptionEvaluation
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    examples: Sequence[CaptionExample] | None = None
    tables: SplitTables = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's flat numbers."""
        return self.evaluation.metrics

    @property
    def num_rows(self) -> int:
        """Images that were captioned."""
        return self.evaluation.num_images


def scores_of_image(evaluation: CaptionEvaluation, row: int) -> dict[str, float]:
    """What a gallery shows of one image: its `GALLERY_SCORES`."""
    return {name: float(evaluation.per_image[name][row]) for name in GALLERY_SCORES if name in evaluation.per_image}


def spread_rows(scores: ArrayLike, *, count: int = 48) -> list[int]:
    """Rows evenly spread over the ranking by a score, the best and the worst among them, the best first.

    Args:
        scores (`ArrayLike` of shape `(N,)`): such as `CaptionEvaluation.per_image["rougeL"]`.
        count (`int`, *optional*, defaults to 48): how many to return at most.
    """
    ranking = np.argsort(-np.asarray(scores), kind="stable")
    if len(ranking) > count:
        ranking = ranking[np.linspace(0, len(ranking) - 1, count).round().astype(int)]
    spread: list[int] = ranking.tolist()
    return spread


def write_caption_gallery(
    path: str | Path, examples: Sequence[CaptionExample], *, title: str = "Captions", subtitle: str = ""
) -> None:
    """Write a self-contained page of all examples, whole or not at all.

    Args:
        path (`str` or `Path`): the HTML file.
        examples (`Sequence[CaptionExample]`): in the order of the data.
        title, subtitle (`str`, *optional*): plain text.
    """
    values = {"title": title, "subtitle": subtitle, "definitions": CAPTION_PROTOCOLS}
    write_page(path, "caption_gallery.html", captions=Captions(examples), **values)


def write_captions_report(run: RunFacts, measured: Mapping[str, MeasuredCaptions]) -> None:
    """Write `plots/training_curves.png`, `report.html`, `evaluation.json` and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredCaptions]`): By split.
    """
    plots = save_training_curves(run.folder / PLOTS_FOLDER, run.log_history, run.best_metric)
    judged = judged_split(measured)
    verdict = None if judged is None else caption_verdict(run, judged[0], judged[1].evaluation, judged[1].baselines)
    write_report(run, caption_sections(run, measured, plots=plots), verdict)
    write_numbers(run, measured, CAPTION_PROTOCOLS, {split: each.tables for split, each in measured.items()})


def caption_sections(
    run: RunFacts, measured: Mapping[str, MeasuredCaptions], *, plots: Mapping[str, Path] | None = None
) -> list[Section]:
    """The sections of a captioner's report.

    Args:
        run (`RunFacts`): The run; without a recipe and stages, captions that were made elsewhere.
        measured (`Mapping[str, MeasuredCaptions]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): `training_curves` is shown.
    """
    evaluations = {split: each.evaluation for split, each in measured.items()}
    sections = [trained_section(run)] if run.trained or run.stages else []
    sections += [_metrics(evaluations), _intervals(evaluations)]
    if any(each.baselines for each in measured.values()):
        sections.append(_baselines(measured))
    sections += curves_section(plots or {})
    for number, (split, each) in enumerate(measured.items()):
        if each.examples is not None:
            note = Text(f"{len(each.examples):,} of {each.num_rows:,} images.", "note")
            gallery = Captions(each.examples, f"captions-{number}")
            sections.append(Section(f"Captions: {split}", [note, gallery]))
    sections += table_sections({split: each.tables for split, each in measured.items()})
    return [*sections, *closing_sections(run)]


def _metrics(evaluations: Mapping[str, CaptionEvaluation]) -> Section:
    counts = {
        "images": (
            {split: each.num_images for split, each in evaluations.items()},
            "Images with a caption generated.",
        ),
        "references": ({split: each.num_references for split, each in evaluations.items()}, "Of all images together."),
        "empty captions": (
            {split: each.num_empty for split, each in evaluations.items()},
            "Generated captions without a word or a sign other than punctuation; they score 0.",
        ),
    }
    return metrics_section(
        {split: each.metrics for split, each in evaluations.items()},
        CAPTION_PROTOCOLS,
        counts=counts,
        undefined={split: each.undefined for split, each in evaluations.items()},
    )


def _intervals(evaluations: Mapping[str, CaptionEvaluation]) -> Section:
    names = [name for name in CAPTION_PROTOCOLS if any(name in each.intervals for each in evaluations.values())]
    rows = []
    for name in names:
        ends = [each.intervals.get(name) for each in evaluations.values()]
        rows.append([name, *("–" if each is None else f"{each[0]:.4f} … {each[1]:.4f}" for each in ends)])
    numbers: Block = Table(["metric", *evaluations], rows) if rows else Text("None was measured.", "nothing")
    return Section("95 % intervals", [numbers, Text(BOOTSTRAP_PROTOCOL, "note")])


def _baselines(measured: Mapping[str, MeasuredCaptions]) -> Section:
    blocks: list[Block] = []
    for split, each in measured.items():
        if each.baselines:
            metrics = {"this model": each.metrics, **each.baselines}
            names = [name for name in CAPTION_PROTOCOLS if any(name in of_one for of_one in each.baselines.values())]
            rows = [[name, *(of_one.get(name) for of_one in metrics.values())] for name in names]
            blocks += [Heading(split), Table(["metric", *metrics], rows)]
    return Section("Beside baselines", blocks)
