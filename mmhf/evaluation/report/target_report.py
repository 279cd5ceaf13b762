"""The report of a model of classes, labels or numbers: one frame, which each kind of target fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from mmhf.evaluation.calibration import CalibrationEvaluation
from mmhf.evaluation.curves import save_training_curves
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.report.page import Card, Section
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
from mmhf.evaluation.report.trust_sections import (
    calibration_section,
    modalities_section,
    subgroups_section,
    views_section,
)
from mmhf.evaluation.report.verdict import (
    Finding,
    Verdict,
    calibration_finding,
    judged_split,
    modality_finding,
    verdict_beside,
)
from mmhf.evaluation.results import subgroup_tables, write_subgroups
from mmhf.evaluation.split_evaluation import SplitEvaluation
from mmhf.evaluation.subgroups import ColumnSubgroups
from mmhf.files import PLOTS_FOLDER, SUBGROUPS_FILE

EvaluationT = TypeVar("EvaluationT", bound=SplitEvaluation)


@dataclass(frozen=True)
class MeasuredViews:
    """What averaging over views of each image brings.

    Attributes:
        words (`str`): The views, as a number's definition says them.
        one_view (`Mapping[str, float]`): The metrics of the images as they are.
    """

    words: str
    one_view: Mapping[str, float]


@dataclass(frozen=True)
class Measured(Generic[EvaluationT]):
    """What evaluating one split gave.

    Attributes:
        evaluation ([`SplitEvaluation`]): The numbers.
        gallery (`Sequence[Card]`, *optional*): Rows on which the model is furthest off; None = they were not looked
            for, as in a stream.
        constants (`Mapping[str, Mapping[str, float]]`): Name → what the same answer for each row scores.
        baselines (`Mapping[str, Mapping[str, float]]`): Name of a baseline → its metrics.
        calibration, subgroups, modalities, views: What else was measured.
    """

    evaluation: EvaluationT
    gallery: Sequence[Card] | None = None
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: CalibrationEvaluation | None = None
    subgroups: Sequence[ColumnSubgroups] = ()
    modalities: ModalityEvaluation | None = None
    views: MeasuredViews | None = None

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


class GalleryWords(NamedTuple):
    """What stands above the rows on which a model is furthest off, and what in place of them if there are none."""

    title: str
    note: str
    nothing: str


class TargetReport(ABC, Generic[EvaluationT]):
    """How one kind of target is reported."""

    protocols: ClassVar[Mapping[str, str]]
    """The definition of each number of its evaluation."""
    counted: ClassVar[str]
    """Which rows are evaluated."""
    left_out: ClassVar[str]
    """Why the others are not: `3 …` and are left out."""
    judged: ClassVar[Sequence[str]]
    """The metrics that a verdict can be about: the one that checkpoints were chosen by, else the first."""
    named: ClassVar[Sequence[str]] = ()
    """The metrics that it names, too."""
    gallery: ClassVar[GalleryWords]

    @abstractmethod
    def tables(self, evaluation: EvaluationT) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Title → rows of column → plain value, for `evaluation.json` and model cards."""

    @abstractmethod
    def draw(self, folder: Path, split: str, measured: Measured[EvaluationT]) -> dict[str, Path]:
        """Draw a split's figures, which has rows; returns `SPLIT_name` → PNG."""

    @abstractmethod
    def details(self, split: str, measured: Measured[EvaluationT], plots: Mapping[str, Path]) -> list[Section]:
        """What is said of a split, which has rows, by class, label or number."""

    def size(self, evaluation: EvaluationT) -> str:
        """What a split was measured on."""
        return f"{evaluation.num_rows:,} rows"

    def interval(self, evaluation: EvaluationT, metric: str) -> Interval:
        """One of its metrics, with a 95 % interval where there is one."""
        value = evaluation.metrics[metric]
        return Interval(value, value, value)

    def findings(self, measured: Measured[EvaluationT], metric: str) -> tuple[list[Finding], list[str]]:
        """What to know about a result that is judged by `metric`, and what to try."""
        shortcut, steps = modality_finding(measured.modalities)
        trust, calibrate = calibration_finding(measured.calibration)
        return [*shortcut, *trust], [*steps, *calibrate]

    def verdict(self, run: RunFacts, split: str, measured: Measured[EvaluationT]) -> Verdict | None:
        """The first lines of the report; None where there is nothing to judge."""
        known = [name for name in self.judged if name in measured.evaluation.metrics]
        metric = run.best_metric if run.best_metric in known else self.judged[0]
        if metric not in known:
            return None
        findings, steps = self.findings(measured, metric)
        return verdict_beside(
            run,
            split,
            metric,
            self.interval(measured.evaluation, metric),
            size=self.size(measured.evaluation),
            measured=measured,
            others=[name for name in self.named if name != metric],
            findings=findings,
            steps=steps,
        )

    def notes(self, evaluations: Mapping[str, EvaluationT]) -> list[str]:
        """Sentences below the metrics of all splits."""
        return ignored_notes(evaluations, self.left_out)

    def plots(self, run: RunFacts, measured: Mapping[str, Measured[EvaluationT]]) -> dict[str, Path]:
        """Draw the training curves and each split's figures."""
        folder = run.folder / PLOTS_FOLDER
        drawn = save_training_curves(folder, run.log_history, run.best_metric)
        for split, each in measured.items():
            if each.num_rows:
                drawn |= self.draw(folder, split, each)
        return drawn

    def sections(
        self,
        run: RunFacts,
        measured: Mapping[str, Measured[EvaluationT]],
        *,
        plots: Mapping[str, Path] | None = None,
    ) -> list[Section]:
        """The sections of the report.

        Args:
            run (`RunFacts`): The run.
            measured (`Mapping[str, Measured]`): By split, in the order of the columns.
            plots (`Mapping[str, Path]`, *optional*): What was drawn, as [`plots`] names it.
        """
        figures, evaluations = plots or {}, {split: each.evaluation for split, each in measured.items()}
        metrics = metrics_section(
            {split: evaluation.metrics for split, evaluation in evaluations.items()},
            _with_views(self.protocols, measured),
            counts={"rows": ({split: each.num_rows for split, each in evaluations.items()}, self.counted)},
            undefined={split: each.undefined for split, each in evaluations.items()},
            notes=self.notes(evaluations),
        )
        sections = [trained_section(run), metrics, *curves_section(figures)]
        for split, each in measured.items():
            if each.num_rows:
                sections += self.details(split, each, figures)
        for split, each in measured.items():
            if each.views is not None:
                sections.append(views_section(split, each.views.words, each.views.one_view, each.evaluation.metrics))
            if each.modalities is not None and each.modalities.num_rows:
                sections.append(modalities_section(split, each.modalities))
            if each.subgroups:
                sections.append(subgroups_section(split, each.subgroups))
            if each.calibration is not None and each.calibration.bins:
                sections.append(calibration_section(split, each.calibration, figures))
        title, note, nothing = self.gallery
        sections += [
            gallery_section(f"{title}: {split}", each.gallery, note=note, nothing=nothing)
            for split, each in measured.items()
            if each.gallery is not None
        ]
        return [*sections, *closing_sections(run)]

    def write(self, run: RunFacts, measured: Mapping[str, Measured[EvaluationT]]) -> None:
        """Write plots, `report.html`, `evaluation.json`, `subgroups.csv` if there are any and, last, `metrics.json`.

        Args:
            run (`RunFacts`): The run.
            measured (`Mapping[str, Measured]`): By split.
        """
        plots = self.plots(run, measured)
        judged = judged_split(measured)
        verdict = None if judged is None else self.verdict(run, *judged)
        write_report(run, self.sections(run, measured, plots=plots), verdict)
        if any(each.subgroups for each in measured.values()):
            write_subgroups(run.folder / SUBGROUPS_FILE, {split: each.subgroups for split, each in measured.items()})
        tables = {
            split: {
                **self.tables(each.evaluation),
                **subgroup_tables(each.subgroups),
                **({} if each.views is None else {"Without views": [each.views.one_view]}),
            }
            for split, each in measured.items()
        }
        write_numbers(run, measured, self._all_protocols(measured), tables)

    def _all_protocols(self, measured: Mapping[str, Measured[EvaluationT]]) -> dict[str, str]:
        """The definitions of all numbers in `metrics.json`."""
        defined, of_one_view = dict(self.protocols), {}
        for each in measured.values():
            for protocols in (found.protocols for found in (each.calibration, *each.subgroups) if found is not None):
                defined.update(protocols)
            of_one_view.update(each.modalities.protocols if each.modalities is not None else {})
        return {**_with_views(defined, measured), **of_one_view}


def _with_views(protocols: Mapping[str, str], measured: Mapping[str, Measured[Any]]) -> Mapping[str, str]:
    """Definitions that say over which views of an image answers are averaged."""
    words = next((each.views.words for each in measured.values() if each.views is not None), None)
    return protocols if words is None else {name: f"{text} Answers: {words}." for name, text in protocols.items()}
