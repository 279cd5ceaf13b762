"""`report.html`: one self-contained page about a run. It needs neither network nor script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmhf.evaluation.classification import PROTOCOLS, ClassificationEvaluation
from mmhf.evaluation.markup import (
    GalleryCard,
    code_block,
    escape,
    figure,
    folded,
    gallery,
    matrix_table,
    paragraph,
    subheading,
    table,
)
from mmhf.evaluation.mistakes import MistakeExample
from mmhf.evaluation.report_style import REPORT_CSS
from mmhf.files import write_text

if TYPE_CHECKING:
    from mmhf.data.bad_examples import BadExample
    from mmhf.data.duplicates import DuplicatePair

MAX_BAD_ROWS = 200
"""Bad rows that a report lists; `bad_examples.csv` has all."""
MAX_DUPLICATES = 50
"""Pairs of equal images that a report lists; `duplicates.csv` has all."""
_MAX_OPEN_CLASSES = 12
_MAX_MATRIX_CLASSES = 60
_MAX_CONFUSIONS = 12
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class ReportSection:
    """A part of a report: its title (plain text) and its body (HTML, made with `mmhf.evaluation.markup`)."""

    title: str
    html: str


def write_report(path: str | Path, sections: Sequence[ReportSection], title: str, subtitle: str = "") -> None:
    """Write a report with a table of contents, atomically.

    Args:
        path (`str` or `Path`): the HTML file.
        sections (`Sequence[ReportSection]`): in the order in which they appear.
        title (`str`): plain text.
        subtitle (`str`, *optional*): plain text, such as the run's folder, date and code version.
    """
    numbered = list(enumerate(sections, 1))
    contents = "".join(f'<li><a href="#section-{at}">{escape(part.title)}</a></li>' for at, part in numbered)
    body = "\n".join(
        f'<section id="section-{at}"><h2>{escape(part.title)}</h2>\n{part.html}\n</section>' for at, part in numbered
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{REPORT_CSS}</style>
</head>
<body>
<div class="page">
<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>
<nav><strong>Contents</strong><ol>{contents}</ol></nav>
{body}
<footer>Made by mmhf.</footer>
</div>
</body>
</html>
"""
    write_text(path, page)


def classification_report_sections(
    evaluations: Mapping[str, ClassificationEvaluation],
    *,
    recipe_yaml: str,
    facts: Mapping[str, object] | None = None,
    stages: Sequence[Mapping[str, object]] = (),
    plots: Mapping[str, Path] | None = None,
    mistakes: Mapping[str, Sequence[MistakeExample]] | None = None,
    bad_examples: Sequence[BadExample] = (),
    duplicates: Sequence[DuplicatePair] = (),
    further: Sequence[ReportSection] = (),
) -> list[ReportSection]:
    """The sections of a classifier's report.

    Args:
        evaluations (`Mapping[str, ClassificationEvaluation]`): by split, in the order of the columns.
        recipe_yaml (`str`): the resolved recipe.
        facts (`Mapping[str, object]`, *optional*): what was trained, name -> value (model, parameters, data, device).
        stages (`Sequence[Mapping[str, object]]`, *optional*): one row a stage, column -> value, the same columns in
            each.
        plots (`Mapping[str, Path]`, *optional*): what `save_classification_plots` returned.
        mistakes (`Mapping[str, Sequence[MistakeExample]]`, *optional*): by split.
        bad_examples (`Sequence[BadExample]`, *optional*): rows that were skipped or blanked.
        duplicates (`Sequence[DuplicatePair]`, *optional*): images that are there twice.
        further (`Sequence[ReportSection]`, *optional*): what stands between the classes and the mistakes.
    """
    figures = plots or {}
    sections = [trained_section(facts or {}, stages), _metrics(evaluations)]
    if "training_curves" in figures:
        caption = "Loss, metrics and learning rates over optimizer steps; dashed lines stand between stages."
        sections.append(ReportSection("Training curves", figure(figures["training_curves"], caption)))
    for split, evaluation in evaluations.items():
        if evaluation.num_rows:
            sections.append(_classes(split, evaluation, figures))
            sections.append(_confusions(split, evaluation, figures))
    sections += further
    sections += [_mistakes(split, examples) for split, examples in (mistakes or {}).items()]
    sections += [*data_sections(bad_examples, duplicates), ReportSection("Recipe", code_block(recipe_yaml))]
    return sections


def trained_section(facts: Mapping[str, object], stages: Sequence[Mapping[str, object]]) -> ReportSection:
    """What was trained: facts, name -> value, and one row a stage."""
    parts = []
    if facts:
        parts.append(table(["", ""], [[name, _plain(value)] for name, value in facts.items()]))
    if stages:
        columns = list(stages[0])
        parts += [
            subheading("Stages"),
            table(columns, [[_plain(stage.get(name)) for name in columns] for stage in stages]),
        ]
    return ReportSection("What was trained", "\n".join(parts) or paragraph("See the recipe below.", kind="nothing"))


def _plain(value: object) -> object:
    """A setting as a person would write it: 10 for 10.0, 0.0001 for 1e-4."""
    return f"{value:g}" if isinstance(value, float) else value


def _metrics(evaluations: Mapping[str, ClassificationEvaluation]) -> ReportSection:
    notes = [
        f"{split}: {evaluation.num_ignored:,} rows have no label or no readable image and are left out."
        for split, evaluation in evaluations.items()
        if evaluation.num_ignored
    ]
    return metrics_section(
        {split: evaluation.metrics for split, evaluation in evaluations.items()},
        PROTOCOLS,
        counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, "Rows with a label.")},
        undefined={split: each.undefined for split, each in evaluations.items()},
        notes=notes,
    )


def metrics_section(
    metrics: Mapping[str, Mapping[str, float]],
    protocols: Mapping[str, str],
    *,
    counts: Mapping[str, tuple[Mapping[str, int], str]],
    undefined: Mapping[str, Mapping[str, str]] | None = None,
    notes: Sequence[str] = (),
) -> ReportSection:
    """A column of numbers for each split, and what each number is.

    Args:
        metrics (`Mapping[str, Mapping[str, float]]`): split -> metric -> value.
        protocols (`Mapping[str, str]`): metric -> definition; those that no split has are left out.
        counts (`Mapping[str, tuple[Mapping[str, int], str]]`): what was evaluated, name -> (split -> number,
            definition); these come first.
        undefined (`Mapping[str, Mapping[str, str]]`, *optional*): split -> metric -> why it has none.
        notes (`Sequence[str]`, *optional*): sentences below the table.
    """
    rows: list[list[object]] = [
        [name, *(of_split[split] for split in metrics), definition] for name, (of_split, definition) in counts.items()
    ]
    rows += [
        [name, *(each.get(name) for each in metrics.values()), protocol]
        for name, protocol in protocols.items()
        if any(name in each for each in metrics.values())
    ]
    sentences = list(notes)
    for split, reasons in (undefined or {}).items():
        sentences += [
            f"{split}: not defined: {', '.join(names)}; {reason}." for reason, names in _by_reason(reasons).items()
        ]
    return ReportSection(
        "Metrics",
        "\n".join(
            [
                table(["metric", *metrics, "definition"], rows, definition="definition"),
                *(paragraph(sentence, kind="note") for sentence in sentences),
            ]
        ),
    )


def _by_reason(undefined: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in undefined.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _classes(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> ReportSection:
    columns = {
        "class": "label",
        "rows": "support",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "ROC-AUC": "roc_auc",
        "average precision": "average_precision",
    }
    numbers = table(list(columns), [[row[key] for key in columns.values()] for row in evaluation.per_class])
    parts = [_open_or_folded("Numbers of each class", numbers, len(evaluation.label_names))]
    name = f"{split}_per_class"
    if name in plots:
        parts.append(figure(plots[name], f"Precision, recall and F1 of each class, {split} split."))
    note = "ROC-AUC and average precision are of the class against the rest."
    return ReportSection(f"Classes: {split}", "\n".join([*parts, paragraph(note, kind="note")]))


def _confusions(split: str, evaluation: ClassificationEvaluation, plots: Mapping[str, Path]) -> ReportSection:
    size = len(evaluation.label_names)
    parts = []
    name = f"{split}_confusion_matrix"
    if name in plots:
        parts.append(figure(plots[name], f"Confusion matrix, {split} split: rows are labels, columns predictions."))
    if size > 2:
        parts += [subheading("Most frequent confusions"), _frequent_confusions(evaluation)]
    if size <= _MAX_MATRIX_CLASSES:
        counts = matrix_table(evaluation.confusion.tolist(), evaluation.label_names)
        parts.append(_open_or_folded("Counts", counts, size))
    return ReportSection(f"Confusion matrix: {split}", "\n".join(parts))


def _frequent_confusions(evaluation: ClassificationEvaluation) -> str:
    counts, names = evaluation.confusion, evaluation.label_names
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    pairs = [(int(at) // len(names), int(at) % len(names)) for at in order]
    rows = [
        [names[label], names[prediction], int(wrong[label, prediction]), f"{_share(counts, label, prediction):.1%}"]
        for label, prediction in pairs
        if wrong[label, prediction]
    ]
    if not rows:
        return paragraph("None: every prediction is right.", kind="nothing")
    return table(["label", "predicted as", "rows", "of the label's rows"], rows)


def _share(counts: np.ndarray, label: int, prediction: int) -> float:
    return float(counts[label, prediction] / counts[label].sum())


def _open_or_folded(title: str, inner_html: str, size: int) -> str:
    if size <= _MAX_OPEN_CLASSES:
        return inner_html
    return folded(f"{title} ({size} classes)", inner_html)


def _mistakes(split: str, examples: Sequence[MistakeExample]) -> ReportSection:
    title = f"Most confident mistakes: {split}"
    if not examples:
        return ReportSection(title, paragraph("None: every prediction is right.", kind="nothing"))
    cards = [
        GalleryCard(
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
    return ReportSection(title, paragraph(note, kind="note") + gallery(cards))


def data_sections(bad_examples: Sequence[BadExample], duplicates: Sequence[DuplicatePair] = ()) -> list[ReportSection]:
    """What is wrong with the data: bad rows and, where some were found, images that are there twice."""
    return [_bad_rows(bad_examples), *([_duplicates(duplicates)] if duplicates else [])]


def _bad_rows(bad_examples: Sequence[BadExample]) -> ReportSection:
    if not bad_examples:
        return ReportSection("Bad rows", paragraph("None was found.", kind="nothing"))
    counts = Counter(each.split for each in bad_examples)
    by_split = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
    parts = [
        paragraph(f"{len(bad_examples):,} rows were skipped or blanked: {by_split}."),
        table(
            ["split", "row", "id", "reason"],
            [[each.split, str(each.row), each.id, each.reason] for each in bad_examples[:MAX_BAD_ROWS]],
        ),
    ]
    hidden = len(bad_examples) - MAX_BAD_ROWS
    if hidden > 0:
        parts.append(paragraph(f"… and {hidden:,} more in bad_examples.csv.", kind="note"))
    return ReportSection("Bad rows", "\n".join(parts))


def _duplicates(pairs: Sequence[DuplicatePair]) -> ReportSection:
    counts: list[list[object]] = []
    for kind, meaning in (("exact", "the same file"), ("near", "nearly the same picture")):
        found = [pair for pair in pairs if pair.kind == kind]
        if found:
            across = sum(pair.crosses_splits for pair in found)
            differing = sum(not pair.same_label for pair in found)
            counts.append([meaning, len(found), across, differing])
    shown = pairs[:MAX_DUPLICATES]
    rows = [
        [pair.kind, pair.first.split, pair.first.id, pair.second.split, pair.second.id, pair.same_label, pair.distance]
        for pair in shown
    ]
    note = "Pairs across splits let a model be tested on what it was trained on: data.on_duplicate leaves them out."
    parts = [
        table(["pairs of", "found", "across splits", "labelled differently"], counts),
        paragraph(note, kind="note"),
        table(["kind", "split", "id", "other split", "other id", "same label", "difference"], rows),
    ]
    if len(pairs) > len(shown):
        parts.append(paragraph(f"… and {len(pairs) - len(shown):,} more in duplicates.csv.", kind="note"))
    return ReportSection("Duplicates", "\n".join(parts))
