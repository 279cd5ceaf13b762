"""The sections of a report that are about retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmhf.evaluation.markup import GalleryCard, code_block, figure, gallery, paragraph
from mmhf.evaluation.report import ReportSection, data_sections, metrics_section, trained_section
from mmhf.evaluation.retrieval.metrics import RETRIEVAL_PROTOCOLS, RetrievalEvaluation
from mmhf.evaluation.retrieval.zero_shot import ZERO_SHOT_PROTOCOLS

if TYPE_CHECKING:
    from mmhf.data.bad_examples import BadExample
    from mmhf.data.duplicates import DuplicatePair

_PROTOCOLS = {**RETRIEVAL_PROTOCOLS, **ZERO_SHOT_PROTOCOLS}


@dataclass(frozen=True, kw_only=True)
class RetrievalExample:
    """A caption whose image is found late, as a person looks at it; `image` is None where it cannot be read."""

    id: str
    image: Image.Image | None
    caption: str
    rank: int
    found_instead: str
    """The caption, or name, of the image that stands first."""


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


def retrieval_report_sections(
    evaluations: Mapping[str, RetrievalEvaluation],
    *,
    recipe_yaml: str,
    facts: Mapping[str, object] | None = None,
    stages: Sequence[Mapping[str, object]] = (),
    more_metrics: Mapping[str, Mapping[str, float]] | None = None,
    plots: Mapping[str, Path] | None = None,
    examples: Mapping[str, Sequence[RetrievalExample]] | None = None,
    bad_examples: Sequence[BadExample] = (),
    duplicates: Sequence[DuplicatePair] = (),
) -> list[ReportSection]:
    """The sections of a dual encoder's report.

    Args:
        evaluations (`Mapping[str, RetrievalEvaluation]`): by split, in the order of the columns.
        recipe_yaml (`str`): the resolved recipe.
        facts (`Mapping[str, object]`, *optional*): what was trained, name -> value.
        stages (`Sequence[Mapping[str, object]]`, *optional*): one row a stage, column -> value.
        more_metrics (`Mapping[str, Mapping[str, float]]`, *optional*): by split, such as those of zero-shot
            classification, to stand below those of retrieval.
        plots (`Mapping[str, Path]`, *optional*): what `save_retrieval_plots` returned.
        examples (`Mapping[str, Sequence[RetrievalExample]]`, *optional*): by split, see `worst_captions`.
        bad_examples (`Sequence[BadExample]`, *optional*): rows that were skipped or blanked.
        duplicates (`Sequence[DuplicatePair]`, *optional*): images that are there twice.
    """
    figures = plots or {}
    sections = [trained_section(facts or {}, stages), _metrics(evaluations, more_metrics or {})]
    if "training_curves" in figures:
        caption = "Loss, metrics and learning rates over optimizer steps; dashed lines stand between stages."
        sections.append(ReportSection("Training curves", figure(figures["training_curves"], caption)))
    for split in evaluations:
        if f"{split}_recall" in figures:
            caption = f"Share of queries answered within the first k results, {split} split; dashed: by chance."
            sections.append(ReportSection(f"Recall: {split}", figure(figures[f"{split}_recall"], caption)))
    sections += [_late_finds(split, found) for split, found in (examples or {}).items()]
    return [*sections, *data_sections(bad_examples, duplicates), ReportSection("Recipe", code_block(recipe_yaml))]


def _metrics(evaluations: Mapping[str, RetrievalEvaluation], more: Mapping[str, Mapping[str, float]]) -> ReportSection:
    counts = {
        "images": ({split: each.num_images for split, each in evaluations.items()}, "Among which captions search."),
        "captions": ({split: len(each.captions) for split, each in evaluations.items()}, "Among which images search."),
    }
    notes = [
        f"{split}: {each.num_ignored:,} captions have no readable image and are left out."
        for split, each in evaluations.items()
        if each.num_ignored
    ]
    return metrics_section(
        {split: {**each.metrics, **more.get(split, {})} for split, each in evaluations.items()},
        _PROTOCOLS,
        counts=counts,
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=notes,
    )


def _late_finds(split: str, examples: Sequence[RetrievalExample]) -> ReportSection:
    title = f"Captions whose image is found last: {split}"
    if not examples:
        return ReportSection(title, paragraph("None: every caption finds its image first.", kind="nothing"))
    cards = [
        GalleryCard(
            image=each.image,
            text=each.caption,
            facts={"rank": f"{each.rank:,}", "found instead": each.found_instead, "id": each.id},
            wrong="rank",
        )
        for each in examples
    ]
    note = "Each image with the caption that should have found it. Many of them can point to captions that do not fit."
    return ReportSection(title, paragraph(note, kind="note") + gallery(cards))
