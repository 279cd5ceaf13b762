"""The report of a classifier of several labels a row: `report.html`, plots, `evaluation.json` and `metrics.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmhf.evaluation.curves import METRIC_TITLES, save_training_curves
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.multi_label import (
    MULTI_LABEL_PROTOCOLS,
    MultiLabelEvaluation,
    WrongDecision,
)
from mmhf.evaluation.plots import plot_per_class
from mmhf.evaluation.report.next_steps import steps_to_try
from mmhf.evaluation.report.page import (
    Block,
    Card,
    Figure,
    Folded,
    Heading,
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
from mmhf.evaluation.report.verdict import LARGE_ECE, Finding, Verdict, judged_split
from mmhf.files import PLOTS_FOLDER

_MAX_OPEN_LABELS = 20
_MAX_PAIRS = 12
_COLUMNS = {
    "label": "label",
    "rows": "support",
    "predicted": "predicted",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "average precision": "average_precision",
    "ROC-AUC": "roc_auc",
    "calibration error": "ece",
    "Brier": "brier",
    "threshold": "threshold",
}


@dataclass(frozen=True, kw_only=True)
class WrongRow:
    """A row with a wrong decision, as a person looks at it.

    Attributes:
        id (`str`): Its name in the data.
        image (`PIL.Image.Image`, *optional*): None where it cannot be read.
        text (`str`, *optional*): None where the data has no texts.
        labels (`str`): Those of the row.
        decision (`str`): What is wrong, with its probability.
    """

    id: str
    image: Image.Image | None
    text: str | None
    labels: str
    decision: str


@dataclass(frozen=True)
class MeasuredMultiLabel:
    """What evaluating one split gave.

    Attributes:
        evaluation ([`MultiLabelEvaluation`]): The numbers.
        mistakes (`Sequence[WrongRow]`, *optional*): Rows on which the model is sure and wrong; None = not looked for.
        temperature (`float`): What the logits were divided by.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
    """

    evaluation: MultiLabelEvaluation
    mistakes: Sequence[WrongRow] | None = None
    temperature: float = 1.0
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's flat numbers."""
        return self.evaluation.metrics

    @property
    def num_rows(self) -> int:
        """Rows that were evaluated."""
        return self.evaluation.num_rows


def wrong_rows(
    mistakes: Sequence[WrongDecision], rows: Iterable[Mapping[str, Any]], label_names: Sequence[str]
) -> list[WrongRow]:
    """Put wrong decisions together with the image, text and labels of their row.

    Args:
        mistakes (`Sequence[WrongDecision]`): What `surest_mistakes` found.
        rows (`Iterable[Mapping[str, Any]]`): The data set's rows of these, in the same order, with `id`, `image`,
            `text` and `labels`.
        label_names (`Sequence[str]`): Names of the labels.
    """
    rows = list(rows)
    found = []
    for mistake, row, shown in zip(mistakes, rows, shown_rows(rows), strict=True):
        own = [name for name, has_it in zip(label_names, row["labels"], strict=True) if has_it]
        way = "missed" if mistake.has_it else "wrongly given"
        found.append(
            WrongRow(
                **shown,
                labels=", ".join(own) or "none",
                decision=f"{label_names[mistake.label]} {way} ({mistake.probability:.1%})",
            )
        )
    return found


def write_multi_label_report(run: RunFacts, measured: Mapping[str, MeasuredMultiLabel]) -> None:
    """Write plots, `report.html`, `evaluation.json` and, last, `metrics.json`.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredMultiLabel]`): By split.
    """
    plots = _save_plots(run, measured)
    judged = judged_split(measured)
    verdict = None
    if judged is not None:
        verdict = _verdict(run, judged[0], judged[1].evaluation, temperature=judged[1].temperature)
    write_report(run, multi_label_sections(run, measured, plots=plots), verdict)
    tables = {split: {"By class": each.evaluation.per_class} for split, each in measured.items()}
    write_numbers(run, measured, MULTI_LABEL_PROTOCOLS, tables)


def _save_plots(run: RunFacts, measured: Mapping[str, MeasuredMultiLabel]) -> dict[str, Path]:
    folder = run.folder / PLOTS_FOLDER
    paths = save_training_curves(folder, run.log_history, run.best_metric)
    for split, each in measured.items():
        if each.num_rows:
            paths[f"{split}_per_class"] = folder / f"{split}_per_class.png"
            plot_per_class(each.evaluation.per_class, paths[f"{split}_per_class"])
    return paths


def multi_label_sections(
    run: RunFacts, measured: Mapping[str, MeasuredMultiLabel], *, plots: Mapping[str, Path] | None = None
) -> list[Section]:
    """The sections of the report.

    Args:
        run (`RunFacts`): The run.
        measured (`Mapping[str, MeasuredMultiLabel]`): By split, in the order of the columns.
        plots (`Mapping[str, Path]`, *optional*): What was drawn, by name: `SPLIT_per_class` and the like.
    """
    figures = plots or {}
    sections = [trained_section(run), _metrics(measured), *curves_section(figures)]
    for split, each in measured.items():
        if each.num_rows:
            sections += [_labels(split, each, figures), _together(split, each.evaluation)]
    sections += [_mistakes(split, each.mistakes) for split, each in measured.items() if each.mistakes is not None]
    return [*sections, *closing_sections(run)]


def _metrics(measured: Mapping[str, MeasuredMultiLabel]) -> Section:
    evaluations = {split: each.evaluation for split, each in measured.items()}
    notes = ignored_notes(evaluations, "rows have no labels or no readable image")
    fitted = any(row["threshold"] != 0.5 for each in evaluations.values() for row in each.per_class)
    if fitted and "validation" in measured:
        notes.append("Thresholds were fitted on the validation split, whose F1 is therefore a little too good.")
    return metrics_section(
        {split: evaluation.metrics for split, evaluation in evaluations.items()},
        MULTI_LABEL_PROTOCOLS,
        counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, "Rows with known labels.")},
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=notes,
    )


def _labels(split: str, measured: MeasuredMultiLabel, plots: Mapping[str, Path]) -> Section:
    rows = measured.evaluation.per_class
    numbers = Table(list(_COLUMNS), [[row[key] for key in _COLUMNS.values()] for row in rows])
    is_long = len(rows) > _MAX_OPEN_LABELS
    blocks: list[Block] = [Folded(f"Numbers of each label ({len(rows)} labels)", numbers) if is_long else numbers]
    if f"{split}_per_class" in plots:
        caption = f"Precision, recall and F1 of each label, {split} split."
        blocks.append(Figure(plots[f"{split}_per_class"], caption))
    blocks.append(Text("A label is predicted where its probability reaches its threshold.", "note"))
    if measured.temperature != 1:
        blocks.append(Text(f"Logits are divided by the temperature {measured.temperature:.4g}."))
    return Section(f"Labels: {split}", blocks)


def _together(split: str, evaluation: MultiLabelEvaluation) -> Section:
    """Which labels come together."""
    counts, names = np.triu(evaluation.together, 1), evaluation.label_names
    rows: list[list[object]] = []
    for at in np.argsort(-counts, axis=None, kind="stable")[:_MAX_PAIRS].tolist():
        one, other = divmod(at, len(names))
        if both := int(counts[one, other]):
            alone = [int(evaluation.together[each, each]) for each in (one, other)]
            rows.append([names[one], names[other], both, *(f"{both / each:.1%}" for each in alone)])
    blocks: list[Block] = [Text("No row has two labels.", "nothing")]
    if rows:
        blocks = [Heading("Most frequent pairs")]
        blocks.append(Table(["label", "other label", "rows", "of the label's rows", "of the other's"], rows))
    return Section(f"Labels together: {split}", blocks)


def _mistakes(split: str, rows: Sequence[WrongRow]) -> Section:
    cards = [
        Card(
            image=each.image,
            text=each.text,
            facts={"wrong": each.decision, "labels": each.labels, "id": each.id},
            wrong="wrong",
        )
        for each in rows
    ]
    note = "For each row the surest wrong decision. Many of them can point to labels that are missing in the data."
    nothing = "None: every decision is right."
    return gallery_section(f"Most confident mistakes: {split}", cards, note=note, nothing=nothing)


def _verdict(
    run: RunFacts, split: str, evaluation: MultiLabelEvaluation, *, temperature: float = 1.0
) -> Verdict | None:
    """The verdict on a classifier of several labels a row; None when no row has labels.

    Args:
        run (`RunFacts`): Names the metric that checkpoints were chosen by, which is judged if it is micro-F1; else
            mean average precision is.
        split (`str`): The split's name.
        evaluation ([`MultiLabelEvaluation`]): Its numbers.
        temperature (`float`, defaults to 1.0): What the logits were divided by.
    """
    metric = "f1_micro" if run.best_metric == "f1_micro" else "map"
    if metric not in evaluation.metrics:
        return None
    value, rows = evaluation.metrics[metric], evaluation.num_rows
    result = Interval(value, value, value)
    supports = np.sort([row["support"] for row in evaluation.per_class])[::-1]
    if metric == "map":
        # A random order finds each label at its own share.
        rivals = {"chance": float(supports[supports > 0].mean() / rows)}
    else:
        same = np.arange(1, len(supports) + 1)
        constant = float((2 * np.cumsum(supports) / (supports.sum() + same * rows)).max())
        rivals = {"the same labels for each row": constant}
    other = "map" if metric == "f1_micro" else "f1_micro"
    name, least = next(iter(rivals.items()))
    findings = [Finding(f"No better than {name} ({least:.4f}).", "bad")]
    if value > least:
        findings = [Finding(f"Better than {name} ({least:.4f}).", "good")]
    others = [name for name in (other, "f1_macro", "f1_samples") if name in evaluation.metrics]
    said = ", ".join(f"{METRIC_TITLES[name]} {evaluation.metrics[name]:.4f}" for name in others)
    findings.append(Finding(f"{said}."))
    steps = []
    never = [row["label"] for row in evaluation.per_class if row["support"] and not row["predicted"]]
    if never:
        findings.append(Finding(f"{len(never)} of {len(evaluation.per_class)} labels are never predicted.", "bad"))
        steps.append("loss.class_weights: balanced, or loss.asymmetric: {}, for the rare labels.")
    if evaluation.metrics["ece"] > LARGE_ECE:
        findings.append(Finding(f"Its probabilities are off by {evaluation.metrics['ece']:.4f} on average.", "bad"))
        steps += [] if temperature != 1 else ["evaluation.calibrate: true, for probabilities that hold."]
    return Verdict(
        metric=metric,
        split=split,
        result=result,
        size=f"{rows:,} rows, {len(evaluation.per_class)} labels",
        rivals=rivals,
        findings=findings,
        next_steps=steps_to_try(run, metric, rivals, result, steps),
    )
