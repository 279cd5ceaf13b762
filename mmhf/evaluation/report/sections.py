"""What all reports have: the record of a run, and the sections about training, metrics and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmhf.evaluation.report.page import Block, Card, Code, Figure, Gallery, Heading, Section, Table, Text, write_page
from mmhf.evaluation.results import Tables, write_details, write_metrics
from mmhf.files import EVALUATION_FILE, METRICS_FILE, REPORT_FILE

if TYPE_CHECKING:
    from mmhf.data.bad_examples import BadExample
    from mmhf.data.duplicates import DuplicatePair
    from mmhf.evaluation.report.verdict import Verdict

MAX_BAD_ROWS = 200
"""Bad rows that a report lists; `bad_examples.csv` has all."""
MAX_DUPLICATES = 50
"""Pairs of equal images that a report lists; `duplicates.csv` has all."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a report says of a run or an evaluation beside what was measured.

    Attributes:
        folder (`Path`): Where report, plots and metrics go.
        title, subtitle (`str`): At the top of the report.
        recipe_yaml (`str`, *optional*): The resolved recipe; absent for predictions made elsewhere.
        best_metric (`str`, *optional*): The metric that the best checkpoint was chosen by, without `eval_`.
        trained (`Mapping[str, object]`): What was trained, name → value (model, parameters, data, device).
        stages (`Sequence[Mapping[str, object]]`): One row a stage, column → value, the same columns in each.
        log_history (`Sequence[Mapping[str, Any]]`): Trainer's, for the curves; empty = nothing was trained.
        bad_examples (`Sequence[BadExample]`): Rows that were skipped or blanked.
        empty_texts (`Mapping[str, int]`): Split → rows whose text may be, and is, empty.
        duplicates (`Sequence[DuplicatePair]`): Images that are there twice.
    """

    folder: Path
    title: str
    subtitle: str = ""
    recipe_yaml: str | None = None
    best_metric: str | None = None
    trained: Mapping[str, object] = field(default_factory=dict)
    stages: Sequence[Mapping[str, object]] = ()
    log_history: Sequence[Mapping[str, Any]] = ()
    bad_examples: Sequence[BadExample] = ()
    empty_texts: Mapping[str, int] = field(default_factory=dict)
    duplicates: Sequence[DuplicatePair] = ()


def write_report(run: RunFacts, sections: Sequence[Section], verdict: Verdict | None = None) -> None:
    """Write `report.html` of a run: its verdict, a table of contents and the sections, whole or not at all."""
    values = {"title": run.title, "subtitle": run.subtitle, "verdict": verdict, "sections": sections}
    write_page(run.folder / REPORT_FILE, "report.html", **values)


class HasNumbers(Protocol):
    """What a split's evaluation gave, as the files of numbers hold it."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Flat numbers, by their names without the split."""
        ...

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Name of a baseline → its metrics."""
        ...


def write_numbers(
    run: RunFacts, measured: Mapping[str, HasNumbers], protocols: Mapping[str, str], tables: Tables | None = None
) -> None:
    """Write `evaluation.json` and, last, `metrics.json`; the arguments are those of `write_details`."""
    baselines = {split: each.baselines for split, each in measured.items()}
    write_details(run.folder / EVALUATION_FILE, protocols, tables, baselines=baselines)
    write_metrics(run.folder / METRICS_FILE, {split: each.metrics for split, each in measured.items()})


def trained_section(run: RunFacts) -> Section:
    """What was trained: facts, name → value, and one row a stage."""
    blocks: list[Block] = []
    if run.trained:
        blocks.append(Table(["", ""], [[name, _plain(value)] for name, value in run.trained.items()]))
    if run.stages:
        columns = [name for name in run.stages[0] if any(stage.get(name) not in (None, "") for stage in run.stages)]
        rows = [[_plain(stage.get(name)) for name in columns] for stage in run.stages]
        blocks += [Heading("Stages"), Table(columns, rows)]
    return Section("What was trained", blocks or [Text("See the recipe below.", "nothing")])


def _plain(value: object) -> object:
    """A setting as a person would write it: 10 for 10.0, 0.0001 for 1e-4."""
    return f"{value:g}" if isinstance(value, float) else value


def curves_section(plots: Mapping[str, Path]) -> list[Section]:
    """The training curves, where they were drawn."""
    if "training_curves" not in plots:
        return []
    caption = "Loss, metrics and learning rates over optimizer steps; dashed lines stand between stages."
    return [Section("Training curves", [Figure(plots["training_curves"], caption)])]


def drawn_figures(plots: Mapping[str, Path], split: str, captions: Mapping[str, str]) -> list[Block]:
    """The figures of a split that were drawn, which `plots` has as `SPLIT_name`, with their captions by name."""
    return [
        Figure(plots[f"{split}_{name}"], caption) for name, caption in captions.items() if f"{split}_{name}" in plots
    ]


def metrics_section(
    metrics: Mapping[str, Mapping[str, float]],
    protocols: Mapping[str, str],
    *,
    counts: Mapping[str, tuple[Mapping[str, int], str]],
    undefined: Mapping[str, Mapping[str, str]] | None = None,
    notes: Sequence[str] = (),
) -> Section:
    """A column of numbers for each split, and what each number is.

    Args:
        metrics (`Mapping[str, Mapping[str, float]]`): split → metric → value.
        protocols (`Mapping[str, str]`): metric → definition; those that no split has are left out.
        counts (`Mapping[str, tuple[Mapping[str, int], str]]`): what was evaluated, name → (split → number,
            definition); these come first.
        undefined (`Mapping[str, Mapping[str, str]]`, *optional*): split → metric → why it has none.
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
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(name)
        sentences += [f"{split}: not defined: {', '.join(names)}; {reason}." for reason, names in by_reason.items()]
    table = Table(["metric", *metrics, "definition"], rows, definition="definition")
    return Section("Metrics", [table, *(Text(sentence, "note") for sentence in sentences)])


class HasIgnored(Protocol):
    """An evaluation that leaves rows out."""

    @property
    def num_ignored(self) -> int:
        """How many."""
        ...


def ignored_notes(evaluations: Mapping[str, HasIgnored], why: str) -> list[str]:
    """How many rows of each split are left out, and why; nothing of a split that has none."""
    return [
        f"{split}: {each.num_ignored:,} {why} and are left out."
        for split, each in evaluations.items()
        if each.num_ignored
    ]


def gallery_section(title: str, cards: Sequence[Card], *, note: str, nothing: str) -> Section:
    """Examples below a note; `nothing` is said where there are none."""
    return Section(title, [Text(note, "note"), Gallery(cards)] if cards else [Text(nothing, "nothing")])


def table_sections(tables: Tables) -> list[Section]:
    """A section for each table of each split."""
    sections = []
    for split, titled in tables.items():
        for title, rows in titled.items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            cells = [[row.get(name) for name in columns] for row in rows]
            sections.append(Section(f"{title}: {split}", [Table(columns, cells)]))
    return sections


def closing_sections(run: RunFacts) -> list[Section]:
    """What is wrong with the data (bad rows and, where there are any, images that are there twice), and the recipe."""
    duplicates = [_duplicates(run.duplicates)] if run.duplicates else []
    recipe = [] if run.recipe_yaml is None else [Section("Recipe", [Code(run.recipe_yaml)])]
    return [_bad_rows(run.bad_examples, run.empty_texts), *duplicates, *recipe]


def _bad_rows(bad_examples: Sequence[BadExample], empty_texts: Mapping[str, int]) -> Section:
    said: list[Block] = []
    if empty_texts:
        total = sum(empty_texts.values())
        said = [Text(f"{total:,} rows without a text are used, as the recipe allows: {_by_split(empty_texts)}.")]
    if not bad_examples:
        return Section("Bad rows", [Text("None was found.", "nothing"), *said])
    counts = Counter(each.split for each in bad_examples)
    rows = [[each.split, str(each.row), each.id, each.reason] for each in bad_examples[:MAX_BAD_ROWS]]
    blocks: list[Block] = [
        Text(f"{len(bad_examples):,} rows were skipped or blanked: {_by_split(counts)}."),
        Table(["split", "row", "id", "reason"], rows),
    ]
    hidden = len(bad_examples) - MAX_BAD_ROWS
    if hidden > 0:
        blocks.append(Text(f"… and {hidden:,} more in bad_examples.csv.", "note"))
    return Section("Bad rows", [*blocks, *said])


def _by_split(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} in {split}" for split, count in counts.items())


def _duplicates(pairs: Sequence[DuplicatePair]) -> Section:
    counts: list[list[object]] = []
    for kind, meaning in _KINDS.items():
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
    blocks: list[Block] = [
        Table(["pairs of", "found", "across splits", "labelled differently"], counts),
        Text(note, "note"),
        Table(["kind", "split", "id", "other split", "other id", "same label", "difference"], rows),
    ]
    if len(pairs) > len(shown):
        blocks.append(Text(f"… and {len(pairs) - len(shown):,} more in duplicates.csv.", "note"))
    return Section("Duplicates", blocks)


_KINDS = {"exact": "the same file", "near": "nearly the same picture", "blank": "blank images, all of one colour"}
