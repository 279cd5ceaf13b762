"""The report of a classifier: classes, confusions, mistakes, and what stands behind its accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmhf.evaluation.calibration import CALIBRATION_PROTOCOLS, CalibrationEvaluation
from mmhf.evaluation.classification import PROTOCOLS, ClassificationEvaluation, Mistake
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.modalities import MODALITY_PROTOCOLS, ModalityEvaluation
from mmhf.evaluation.plots import save_calibration_plots, save_classification_plots
from mmhf.evaluation.report.page import (
    Block,
    Card,
    Figure,
    Folded,
    Heading,
    Matrix,
    Section,
    Table,
    Text,
    shown_rows,
)
from mmhf.evaluation.report.sections import (
    RunFacts,
    closing_sections,
    curves_section,
    gallery_section,
    ignored_notes,
    metrics_section,
    trained_section,
    write_numbers,
    write_report,
)
from mmhf.evaluation.report.verdict import classification_verdict, judged_split
from mmhf.evaluation.results import classification_tables, write_subgroups
from mmhf.evaluation.subgroups import INTERVAL, METRICS, ColumnSubgroups
from mmhf.files import PLOTS_FOLDER, SUBGROUPS_FILE

_MAX_OPEN_CLASSES = 12
_MAX_MATRIX_CLASSES = 60
_MAX_CONFUSIONS = 12
_VIEW_NAMES = {
    "image_only": "image alone",
    "text_only": "text alone",
    "columns_only": "columns alone",
    "without_columns": "image and text, no columns",
    # Not "mismatched", which can be a class.
    "mismatched, image's label": "another row's text, image's label",
    "mismatched, text's label": "another row's text, text's label",
}
_VIEW_METRICS = ("accuracy", "f1_macro", "roc_auc")


@dataclass(frozen=True, kw_only=True)
class MistakeExample:
    """A wrong prediction as a person looks at it.

    Attributes:
        id (`str`): Its name in the data.
        image (`PIL.Image.Image`, *optional*): None where it cannot be read.
        text (`str`, *optional*): None where the data has no texts.
        label, prediction (`str`): Names of the classes.
        confidence (`float`): The prediction's probability.
    """

    id: str
    image: Image.Image | None
    text: str | None
    label: str
    prediction: str
    confidence: float


@dataclass(frozen=True)
class MeasuredClassification:
    """What evaluating one split gave.

    Attributes:
        evaluation (`ClassificationEvaluation`): The numbers.
        mistakes (`Sequence[MistakeExample]`, *optional*): Rows on which the model is sure and wrong; None = they were
            not looked for, as in a stream.
        calibration, subgroups, modalities: What else was measured.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
        majority (`str`, *optional*): The largest class of the training split, where that is at hand.
    """

    evaluation: ClassificationEvaluation
    mistakes: Sequence[MistakeExample] | None = None
    calibration: CalibrationEvaluation | None = None
    subgroups: Sequence[ColumnSubgroups] = ()
    modalities: ModalityEvaluation | None = None
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    majority: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluations' flat numbers."""
        flat = {**self.evaluation.metrics, **(self.calibration.metrics if self.calibration else {})}
        for column in self.subgroups:
            flat.update(column.flat())
        return flat if self.modalities is None else {**flat, **self.modalities.flat()}

    @property
    def num_rows(self) -> int:
        """Rows that were evaluated."""
        return self.evaluation.num_rows


def mistake_examples(
    mistakes: Sequence[Mistake], rows: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> list[MistakeExample]:
    """Put mistakes together with their image and text.

    Args:
        mistakes (`Sequence[Mistake]`): what `most_confident_mistakes` found.
        rows (`Iterable[Mapping[str, Any]]`): the data set's rows of these mistakes, in the same order, as `shown_rows`
            takes them: `dataset.select([mistake.index for mistake in mistakes])`.
        label_names (`Sequence[str]`): names of the classes.
    """
    return [
        MistakeExample(
            **row,
            label=label_names[mistake.label],
            prediction=label_names[mistake.prediction],
            confidence=mistake.confidence,
        )
        for mistake, row in zip(mistakes, shown_rows(rows), strict=True)
    ]


def write_classification_report(
    run: RunFacts,
    measured: Mapping[str, MeasuredClassification],
    *,
    protocols: Mapping[str, str] = PROTOCOLS,
    min_rows: int = 10,
) -> None:
    """Write plots, `report.html`, `evaluation.json`, `subgroups.csv` if there are any and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredClassification]`): By split.
        protocols (`Mapping[str, str]`): Each metric's definition.
        min_rows (`int`): Rows that a subgroup must have to be the best or the worst.
    """
    folder = run.folder / PLOTS_FOLDER
    evaluations = {split: each.evaluation for split, each in measured.items()}
    calibrations = {split: each.calibration for split, each in measured.items() if each.calibration is not None}
    plots = save_classification_plots(folder, evaluations, log_history=run.log_history, best_metric=run.best_metric)
    plots |= save_calibration_plots(folder, calibrations)
    verdict = None
    if (judged := judged_split(measured)) is not None:
        split, each = judged
        verdict = classification_verdict(
            run,
            split,
            each.evaluation,
            calibration=each.calibration,
            modalities=each.modalities,
            baselines=each.baselines,
            majority=each.majority,
        )
    write_report(run, classification_sections(run, measured, plots=plots, min_rows=min_rows), verdict)
    if any(each.subgroups for each in measured.values()):
        write_subgroups(run.folder / SUBGROUPS_FILE, {split: each.subgroups for split, each in measured.items()})
    tables = {split: classification_tables(each.evaluation, each.subgroups) for split, each in measured.items()}
    write_numbers(run, measured, {**protocols, **CALIBRATION_PROTOCOLS, **MODALITY_PROTOCOLS}, tables)


def classification_sections(
    run: RunFacts,
    measured: Mapping[str, MeasuredClassification],
    *,
    plots: Mapping[str, Path] | None = None,
    min_rows: int = 10,
) -> list[Section]:
    """The sections of a classifier's report.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredClassification]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): What was drawn, by name: `SPLIT_per_class` and the like.
        min_rows (`int`): Rows that a subgroup must have to be the best or the worst.
    """
    figures = plots or {}
    sections = [trained_section(run), _metrics(measured), *curves_section(figures)]
    for split, each in measured.items():
        if each.num_rows:
            sections += [_classes(split, each.evaluation, figures), _confusions(split, each.evaluation, figures)]
    for split, each in measured.items():
        if each.modalities is not None and each.modalities.num_rows:
            sections.append(_modalities(split, each.modalities))
        if each.subgroups:
            sections.append(_subgroups(split, each.subgroups, min_rows=min_rows))
        if each.calibration is not None and each.calibration.bins:
            sections.append(_calibration(split, each.calibration, figures))
    sections += [_mistakes(split, each.mistakes) for split, each in measured.items() if each.mistakes is not None]
    return [*sections, *closing_sections(run)]


def _metrics(measured: Mapping[str, MeasuredClassification]) -> Section:
    evaluations = {split: each.evaluation for split, each in measured.items()}
    return metrics_section(
        {split: evaluation.metrics for split, evaluation in evaluations.items()},
        PROTOCOLS,
        counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, "Rows with a label.")},
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=ignored_notes(evaluations, "rows have no label or no readable image"),
    )


def _classes(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> Section:
    columns = {
        "class": "label",
        "rows": "support",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "ROC-AUC": "roc_auc",
        "average precision": "average_precision",
    }
    numbers = Table(list(columns), [[row[key] for key in columns.values()] for row in evaluation.per_class])
    blocks: list[Block] = [_open_or_folded("Numbers of each class", numbers, len(evaluation.label_names))]
    name = f"{split}_per_class"
    if name in plots:
        blocks.append(Figure(plots[name], f"Precision, recall and F1 of each class, {split} split."))
    blocks.append(Text("ROC-AUC and average precision are of the class against the rest.", "note"))
    return Section(f"Classes: {split}", blocks)


def _confusions(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> Section:
    size = len(evaluation.label_names)
    blocks: list[Block] = []
    name = f"{split}_confusion_matrix"
    if name in plots:
        blocks.append(Figure(plots[name], f"Confusion matrix, {split} split: rows are labels, columns predictions."))
    if size > 2:
        blocks += [Heading("Most frequent confusions"), _frequent_confusions(evaluation)]
    if size <= _MAX_MATRIX_CLASSES:
        counts = Matrix(evaluation.confusion.tolist(), evaluation.label_names)
        blocks.append(_open_or_folded("Counts", counts, size))
    return Section(f"Confusion matrix: {split}", blocks)


def _frequent_confusions(evaluation: ClassificationEvaluation) -> Block:
    counts, names = evaluation.confusion, evaluation.label_names
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for at in np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS].tolist():
        label, prediction = divmod(at, len(names))
        if wrong[label, prediction]:
            share = float(counts[label, prediction] / counts[label].sum())
            rows.append([names[label], names[prediction], int(wrong[label, prediction]), f"{share:.1%}"])
    if not rows:
        return Text("None: every prediction is right.", "nothing")
    return Table(["label", "predicted as", "rows", "of the label's rows"], rows)


def _open_or_folded(title: str, block: Table | Matrix, size: int) -> Block:
    return block if size <= _MAX_OPEN_CLASSES else Folded(f"{title} ({size} classes)", block)


def _modalities(split: str, evaluation: ModalityEvaluation) -> Section:
    """What the model makes of image, text and columns apart."""
    names = {**_VIEW_NAMES, "both": " and ".join([", ".join(evaluation.modalities[:-1]), evaluation.modalities[-1]])}
    rows: list[list[object]] = [
        [names.get(view, view), *(metrics.get(name) for name in _VIEW_METRICS)]
        for view, metrics in evaluation.metrics.items()
    ]
    note = f"{evaluation.num_rows:,} rows that have {names['both']}. "
    if evaluation.changed is None:
        note += "Where one alone is as good as all, the model goes by a shortcut through it."
    else:
        note += (
            f"Another row's text beside an image changes {evaluation.changed:.1%} of the predictions. Where one "
            "modality alone is as good as all, or predictions for such pairs keep one side's label, the model goes by "
            "a shortcut through it."
        )
    blocks: list[Block] = [Table(["shown", *_VIEW_METRICS], rows), Text(note, "note")]
    if evaluation.num_left_out:
        blocks.append(Text(f"{evaluation.num_left_out:,} rows lack one of these.", "note"))
    defined = [[name, value, MODALITY_PROTOCOLS[name]] for name, value in evaluation.flat().items()]
    blocks.append(Table(["metric", split, "definition"], defined, definition="definition"))
    return Section(f"By modality: {split}", blocks)


def _subgroups(split: str, columns: Sequence[ColumnSubgroups], *, min_rows: int) -> Section:
    """Metrics of each subgroup, and the gaps."""
    blocks: list[Block] = []
    for each in columns:
        rows: list[list[object]] = [
            [group.value, group.num_rows, *(_shown(group.metrics[metric]) for metric in METRICS)]
            for group in each.groups
        ]
        blocks += [Heading(each.column), Table([each.column, "rows", *METRICS], rows)]
        blocks += [
            Text(f"Gap in {metric}: {_shown(gap.difference)}, {gap.best} against {gap.worst}.")
            for metric, gap in each.gaps.items()
        ]
        if not each.gaps:
            blocks.append(Text(f"No two groups have {min_rows} rows, so no gap is measured.", "nothing"))
    return Section(f"Subgroups: {split}", [*blocks, Text(INTERVAL, "note")])


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _calibration(split: str, evaluation: CalibrationEvaluation, plots: Mapping[str, Path]) -> Section:
    """Whether confidence can be trusted, and what abstaining would bring."""
    rows: list[list[object]] = [
        [name, evaluation.metrics[name], protocol]
        for name, protocol in CALIBRATION_PROTOCOLS.items()
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
    }
    blocks += [
        Figure(plots[f"{split}_{name}"], caption) for name, caption in captions.items() if f"{split}_{name}" in plots
    ]
    return Section(f"Calibration: {split}", blocks)


def _mistakes(split: str, examples: Sequence[MistakeExample]) -> Section:
    cards = [
        Card(
            image=each.image,
            text=each.text,
            facts={
                "predicted": each.prediction,
                "label": each.label,
                "confidence": f"{each.confidence:.1%}",
                "id": each.id,
            },
            wrong="predicted",
        )
        for each in examples
    ]
    note = "Wrong predictions with the highest softmax probability. Many of them can point to wrong labels."
    nothing = "None: every prediction is right."
    return gallery_section(f"Most confident mistakes: {split}", cards, note=note, nothing=nothing)
