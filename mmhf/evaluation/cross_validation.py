"""What the runs of a cross-validation say together: means, standard deviations, and a short page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmhf.evaluation.baselines import CPU_SECONDS
from mmhf.evaluation.report.page import Block, Code, Section, Table, Text, write_page
from mmhf.evaluation.results import Baselines
from mmhf.files import FOLDS_FILE, METRICS_FILE, REPORT_FILE, write_csv, write_json

Numbers = Mapping[str, float | None]

_BESIDE = 4
"""Metrics that stand beside those of baselines."""


@dataclass(frozen=True)
class FoldMetric:
    """A number of each fold.

    Args:
        values (`tuple[float | None, ...]`): By fold; None where it is not defined there.
    """

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Over all folds; None where one has no value."""
        known = self._known()
        return statistics.fmean(known) if known else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample: squares are divided by n - 1."""
        known = self._known()
        return statistics.stdev(known) if known else None

    def __str__(self) -> str:
        return "undefined" if self.mean is None else f"{self.mean:.4f} ± {self.deviation:.4f}"

    def _known(self) -> list[float]:
        known = [value for value in self.values if value is not None]
        return known if len(known) == len(self.values) else []


def summarise_folds(folds: Sequence[Numbers]) -> dict[str, FoldMetric]:
    """Put the numbers of each fold side by side.

    Args:
        folds (`Sequence[Mapping[str, float | None]]`): Each fold's `metrics.json`.
    """
    names = dict.fromkeys(name for each in folds for name in each)
    return {name: FoldMetric(tuple(each.get(name) for each in folds)) for name in names}


def write_cross_validation(
    folder: Path,
    metrics: Mapping[str, FoldMetric],
    *,
    title: str,
    notes: Sequence[str],
    protocols: Mapping[str, str],
    baselines: Sequence[Baselines],
    recipe_yaml: str,
) -> None:
    """Write `folds.csv`, `report.html` and, last, `metrics.json`: each metric's mean, and its `_std`.

    Args:
        folder (`Path`): The folder of the cross-validation.
        metrics (`Mapping[str, FoldMetric]`): As `summarise_folds` gives them.
        title (`str`): Of the page.
        notes (`Sequence[str]`): Sentences on what was measured how.
        protocols (`Mapping[str, str]`): Metric, without the split → its definition.
        baselines (`Sequence`): Of each fold: split → name → metric → value.
        recipe_yaml (`str`): The recipe that the folds have in common.
    """
    count = len(next(iter(metrics.values())).values)
    numbers = [f"fold {number}" for number in range(1, count + 1)]
    rows = [[name, each.mean, each.deviation, *each.values] for name, each in metrics.items()]
    write_csv(folder / FOLDS_FILE, ["metric", "mean", "std", *numbers], rows)
    defined = [[*row, protocols.get(str(row[0]).partition("_")[2])] for row in rows]
    blocks: list[Block] = [
        *map(Text, notes),
        Table(["metric", "mean", "± std", *numbers, "definition"], defined, definition="definition"),
    ]
    sections = [
        Section("Folds", blocks),
        *_beside_baselines(metrics, baselines),
        Section("Recipe", [Code(recipe_yaml)]),
    ]
    subtitle = f"cross-validation of {count} folds"
    write_page(folder / REPORT_FILE, "report.html", title=title, subtitle=subtitle, verdict=None, sections=sections)
    flat = {name: (each.mean, each.deviation) for name, each in metrics.items()}
    write_json(folder / METRICS_FILE, {f"{name}{end}": pair[at] for name, pair in flat.items() for at, end in _ENDS})


_ENDS = ((0, ""), (1, "_std"))


def _beside_baselines(metrics: Mapping[str, FoldMetric], baselines: Sequence[Baselines]) -> list[Section]:
    """Mean and deviation of the baselines that each fold has, beside the model's."""
    blocks: list[Block] = []
    for split, named in baselines[0].items():
        common = [name for name in named if all(name in each.get(split, {}) for each in baselines)]
        of = {name: summarise_folds([each[split][name] for each in baselines]) for name in common}
        shown = [name for name in dict.fromkeys(name for each in of.values() for name in each) if name != CPU_SECONDS]
        shown = [name for name in shown if f"{split}_{name}" in metrics][:_BESIDE]
        if shown:
            ours = {name: metrics[f"{split}_{name}"] for name in shown}
            rows = [[name, *(str(each.get(metric, "")) for metric in shown)] for name, each in of.items()]
            rows.insert(0, ["the models", *map(str, ours.values())])
            blocks.append(Table([split, *shown], rows))
    return [Section("Beside what needs no training", blocks)] if blocks else []
