"""The sections of a report that are about generated captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmhf.evaluation.captions.gallery import CaptionExample, caption_gallery
from mmhf.evaluation.captions.metrics import CaptionEvaluation
from mmhf.evaluation.captions.protocols import BOOTSTRAP_PROTOCOL, CAPTION_PROTOCOLS
from mmhf.evaluation.markup import code_block, figure, paragraph, subheading, table
from mmhf.evaluation.report import ReportSection, data_sections, metrics_section, trained_section

if TYPE_CHECKING:
    from mmhf.data.bad_examples import BadExample
    from mmhf.data.duplicates import DuplicatePair


def caption_report_sections(
    evaluations: Mapping[str, CaptionEvaluation],
    *,
    recipe_yaml: str | None = None,
    facts: Mapping[str, object] | None = None,
    stages: Sequence[Mapping[str, object]] = (),
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    plots: Mapping[str, Path] | None = None,
    examples: Mapping[str, Sequence[CaptionExample]] | None = None,
    bad_examples: Sequence[BadExample] = (),
    duplicates: Sequence[DuplicatePair] = (),
) -> list[ReportSection]:
    """The sections of a captioner's report.

    Args:
        evaluations (`Mapping[str, CaptionEvaluation]`): by split, in the order of the columns.
        recipe_yaml (`str`, *optional*): the resolved recipe; absent for captions made elsewhere.
        facts (`Mapping[str, object]`, *optional*): what was trained, name -> value, the decoding among them.
        stages (`Sequence[Mapping[str, object]]`, *optional*): one row a stage, column -> value.
        baselines (`Mapping[str, Mapping[str, Mapping[str, float]]]`, *optional*): split -> name of a baseline -> what
            `caption_metrics` says of it.
        plots (`Mapping[str, Path]`, *optional*): `training_curves` is shown.
        examples (`Mapping[str, Sequence[CaptionExample]]`, *optional*): by split, see `spread_rows`.
        bad_examples (`Sequence[BadExample]`, *optional*): rows that were skipped or blanked.
        duplicates (`Sequence[DuplicatePair]`, *optional*): images that are there twice.
    """
    sections = [trained_section(facts or {}, stages)] if facts or stages else []
    sections += [_metrics(evaluations), _intervals(evaluations)]
    if baselines:
        sections.append(_baselines(evaluations, baselines))
    if plots and "training_curves" in plots:
        caption = "Loss, metrics and learning rates over optimizer steps; dashed lines stand between stages."
        sections.append(ReportSection("Training curves", figure(plots["training_curves"], caption)))
    for number, (split, of_split) in enumerate((examples or {}).items()):
        note = f"{len(of_split):,} of {evaluations[split].num_images:,} images."
        gallery = caption_gallery(of_split, name=f"captions-{number}")
        sections.append(ReportSection(f"Captions: {split}", paragraph(note, kind="note") + gallery))
    sections += data_sections(bad_examples, duplicates)
    return sections if recipe_yaml is None else [*sections, ReportSection("Recipe", code_block(recipe_yaml))]


def _metrics(evaluations: Mapping[str, CaptionEvaluation]) -> ReportSection:
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


def _intervals(evaluations: Mapping[str, CaptionEvaluation]) -> ReportSection:
    names = [name for name in CAPTION_PROTOCOLS if any(name in each.intervals for each in evaluations.values())]
    rows = [[name, *(_interval(each, name) for each in evaluations.values())] for name in names]
    body = table(["metric", *evaluations], rows) if rows else paragraph("There is no image.", kind="nothing")
    return ReportSection("95 % intervals", body + paragraph(BOOTSTRAP_PROTOCOL, kind="note"))


def _interval(evaluation: CaptionEvaluation, name: str) -> str:
    if name not in evaluation.intervals:
        return "–"
    low, high = evaluation.intervals[name]
    return f"{low:.4f} … {high:.4f}"


def _baselines(
    evaluations: Mapping[str, CaptionEvaluation], baselines: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> ReportSection:
    parts = []
    for split, of_split in baselines.items():
        metrics = {"this model": evaluations[split].metrics, **of_split}
        names = [name for name in CAPTION_PROTOCOLS if any(name in each for each in of_split.values())]
        rows = [[name, *(each.get(name) for each in metrics.values())] for name in names]
        parts += [subheading(split), table(["metric", *metrics], rows)]
    return ReportSection("Beside baselines", "\n".join(parts))
