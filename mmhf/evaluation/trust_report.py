"""Report sections on what stands behind a classifier's accuracy: modalities, subgroups, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmhf.evaluation.calibration import CALIBRATION_PROTOCOLS, CalibrationEvaluation
from mmhf.evaluation.calibration_plots import plot_reliability, plot_selective
from mmhf.evaluation.markup import figure, paragraph, subheading, table
from mmhf.evaluation.modality_views import MODALITY_PROTOCOLS, ModalityEvaluation
from mmhf.evaluation.report import ReportSection
from mmhf.evaluation.subgroups import INTERVAL, METRICS, ColumnSubgroups, Interval
from mmhf.files import write_csv

_VIEW_NAMES = {"both": "image and text", "image_only": "image alone", "text_only": "text alone"}
_VIEW_METRICS = ("accuracy", "f1_macro", "roc_auc")


def modality_section(split: str, evaluation: ModalityEvaluation) -> ReportSection:
    """What the model makes of image and text apart."""
    rows: list[list[object]] = [
        [_VIEW_NAMES.get(view, view), *(metrics.get(name) for name in _VIEW_METRICS)]
        for view, metrics in evaluation.metrics.items()
    ]
    note = (
        f"{evaluation.num_rows:,} rows that have both. Each mismatched pair is an image with the text of another row; "
        f"the text changes {evaluation.changed:.1%} of the predictions. Where one modality alone is as good as both, "
        "or mismatched pairs keep one side's label, the model goes by a shortcut through it."
    )
    parts = [table(["shown", *_VIEW_METRICS], rows), paragraph(note, kind="note")]
    if evaluation.num_left_out:
        parts.append(paragraph(f"{evaluation.num_left_out:,} rows lack one of the two.", kind="note"))
    parts.append(paragraph(" ".join(MODALITY_PROTOCOLS.values()), kind="note"))
    return ReportSection(f"By modality: {split}", "\n".join(parts))


def subgroup_section(split: str, columns: Sequence[ColumnSubgroups], *, min_rows: int) -> ReportSection:
    """Metrics of each subgroup, and the gaps."""
    parts = []
    for each in columns:
        parts.append(subheading(each.column))
        rows: list[list[object]] = [
            [group.value, group.num_rows, *(_shown(group.metrics[metric]) for metric in METRICS)]
            for group in each.groups
        ]
        parts.append(table([each.column, "rows", *METRICS], rows))
        for metric, gap in each.gaps.items():
            sentence = f"Gap in {metric}: {_shown(gap.difference)}, {gap.best} against {gap.worst}."
            parts.append(paragraph(sentence))
        if not each.gaps:
            parts.append(paragraph(f"No two groups have {min_rows} rows, so no gap is measured.", kind="nothing"))
    parts.append(paragraph(INTERVAL, kind="note"))
    return ReportSection(f"Subgroups: {split}", "\n".join(parts))


def calibration_section(split: str, evaluation: CalibrationEvaluation, plots: Mapping[str, Path]) -> ReportSection:
    """Whether confidence can be trusted, and what abstaining would bring."""
    rows: list[list[object]] = [
        [name, evaluation.metrics[name], protocol]
        for name, protocol in CALIBRATION_PROTOCOLS.items()
        if name in evaluation.metrics
    ]
    facts = [
        f"Logits are divided by the temperature {evaluation.temperature:.4g}." if evaluation.temperature != 1 else ""
    ]
    if evaluation.abstain_below is not None:
        facts.append(f"The model abstains below a confidence of {evaluation.abstain_below:.4f}.")
    parts = [table(["metric", split, "definition"], rows, definition="definition")]
    parts += [paragraph(fact) for fact in facts if fact]
    captions = {
        "reliability": "Reliability diagram: accuracy of the predictions in each bin of confidence.",
        "selective": "Selective prediction: accuracy when only the surest rows are answered.",
    }
    parts += [
        figure(plots[f"{split}_{name}"], caption) for name, caption in captions.items() if f"{split}_{name}" in plots
    ]
    return ReportSection(f"Calibration: {split}", "\n".join(parts))


def save_calibration_plots(folder: str | Path, evaluations: Mapping[str, CalibrationEvaluation]) -> dict[str, Path]:
    """Draw `SPLIT_reliability.png` and `SPLIT_selective.png` of each split with labelled rows; returns their paths."""
    paths = {}
    for split, evaluation in evaluations.items():
        if evaluation.bins:
            paths[f"{split}_reliability"] = Path(folder) / f"{split}_reliability.png"
            plot_reliability(evaluation, paths[f"{split}_reliability"])
            paths[f"{split}_selective"] = Path(folder) / f"{split}_selective.png"
            plot_selective(evaluation, paths[f"{split}_selective"])
    return paths


def write_subgroups(path: str | Path, by_split: Mapping[str, Sequence[ColumnSubgroups]]) -> None:
    """Write every subgroup's metrics as CSV: split, column, value, rows, metric, value, low, high; atomically."""
    rows = [
        [split, each.column, group.value, group.num_rows, metric]
        + [f"{number:.6f}" for number in (interval.value, interval.low, interval.high)]
        for split, columns in by_split.items()
        for each in columns
        for group in each.groups
        for metric, interval in group.metrics.items()
    ]
    write_csv(path, ["split", "column", "group", "rows", "metric", "value", "low", "high"], rows)


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
