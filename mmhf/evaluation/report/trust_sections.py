"""What stands behind a model's numbers: by modality, by group of rows, and how far its probabilities hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmhf.evaluation.calibration import CalibrationEvaluation
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.report.page import Block, Heading, Section, Table, Text
from mmhf.evaluation.report.sections import drawn_figures
from mmhf.evaluation.subgroups import INTERVAL, ColumnSubgroups

_VIEW_NAMES = {
    "image_only": "image alone",
    "text_only": "text alone",
    "columns_only": "columns alone",
    "without_columns": "image and text, no columns",
    # Not "mismatched", which can be a class.
    "mismatched, image's label": "another row's text, image's label",
    "mismatched, text's label": "another row's text, text's label",
}


def modalities_section(split: str, evaluation: ModalityEvaluation) -> Section:
    """What the model makes of image, text and columns apart."""
    names = {**_VIEW_NAMES, "both": " and ".join([", ".join(evaluation.modalities[:-1]), evaluation.modalities[-1]])}
    shown = evaluation.comparison.metrics
    rows: list[list[object]] = [
        [names.get(view, view), *(metrics.get(name) for name in shown)] for view, metrics in evaluation.metrics.items()
    ]
    note = f"{evaluation.num_rows:,} rows that have {names['both']}. "
    if evaluation.changed is None:
        note += "Where one alone is as good as all, the model goes by a shortcut through it."
    else:
        changes = evaluation.comparison.changes.format(evaluation.changed)
        note += (
            f"Another row's text beside an image {changes}. Where one "
            "modality alone is as good as all, or predictions for such pairs keep one side's label, the model goes by "
            "a shortcut through it."
        )
    blocks: list[Block] = [Table(["shown", *shown], rows), Text(note, "note")]
    if evaluation.num_left_out:
        blocks.append(Text(f"{evaluation.num_left_out:,} rows lack one of these.", "note"))
    defined = [[name, value, evaluation.protocols[name]] for name, value in evaluation.flat().items()]
    blocks.append(Table(["metric", split, "definition"], defined, definition="definition"))
    return Section(f"By modality: {split}", blocks)


def subgroups_section(split: str, columns: Sequence[ColumnSubgroups]) -> Section:
    """Metrics of each subgroup, and the gaps."""
    blocks: list[Block] = []
    names = dict.fromkeys(name for each in columns for group in each.groups for name in group.metrics)
    for each in columns:
        rows: list[list[object]] = [
            [group.value, group.num_rows, *(_shown(group.metrics[metric]) for metric in names)]
            for group in each.groups
        ]
        blocks += [Heading(each.column), Table([each.column, "rows", *names], rows)]
        blocks += [
            Text(f"Gap in {metric}: {_shown(gap.difference)}, {gap.best} against {gap.worst}.")
            for metric, gap in each.gaps.items()
        ]
        if not each.gaps:
            blocks.append(Text(f"No two groups have {each.min_rows} rows, so no gap is measured.", "nothing"))
    return Section(f"Subgroups: {split}", [*blocks, Text(INTERVAL, "note")])


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def calibration_section(split: str, evaluation: CalibrationEvaluation, plots: Mapping[str, Path]) -> Section:
    """Whether confidence can be trusted, and what abstaining would bring."""
    rows: list[list[object]] = [
        [name, evaluation.metrics[name], protocol]
        for name, protocol in evaluation.protocols.items()
        if name in evaluation.metrics
    ]
    blocks: list[Block] = [Table(["metric", split, "definition"], rows, definition="definition")]
    if evaluation.temperature != 1:
        blocks.append(Text(f"Logits are divided by the temperature {evaluation.temperature:.4g}."))
    if evaluation.abstain_below is not None:
        blocks.append(Text(f"The model abstains below a confidence of {evaluation.abstain_below:.4f}."))
    captions = {
        "reliability": "Reliability diagram: accuracy of the predictions in each bin of confidence.",
        "selective": "Selective prediction: accuracy when only the surest rows are answered.",
        "label_reliability": "Reliability diagrams: share of the rows that have a label, by its probability; of all "
        "labels together, and of those with the largest calibration errors.",
    }
    return Section(f"Calibration: {split}", [*blocks, *drawn_figures(plots, split, captions)])


def views_section(split: str, words: str, one_view: Mapping[str, float], averaged: Mapping[str, float]) -> Section:
    """What averaging over views of each image brings."""
    rows: list[list[object]] = [[name, averaged.get(name), value] for name, value in one_view.items()]
    note = f"{words[0].upper()}{words[1:]}; the model answers so wherever it is used."
    return Section(f"Views: {split}", [Table(["metric", "over views", "as it is"], rows), Text(note, "note")])
