"""The first lines of a report: how good it is, beside what costs nothing, what to doubt, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np

from mmhf.evaluation.baselines import CPU_SECONDS
from mmhf.evaluation.calibration import CalibrationEvaluation
from mmhf.evaluation.captions.metrics import CaptionEvaluation
from mmhf.evaluation.curves import METRIC_TITLES
from mmhf.evaluation.intervals import Interval
from mmhf.evaluation.modalities import ModalityEvaluation
from mmhf.evaluation.report.next_steps import steps_to_try
from mmhf.evaluation.report.sections import RunFacts
from mmhf.evaluation.retrieval.metrics import RetrievalEvaluation, chance_recall, recall_interval
from mmhf.recipe.training_sections import greater_is_better

_SHORTCUT = 0.02
LARGE_ECE = 0.05

SplitT = TypeVar("SplitT")


@dataclass(frozen=True)
class Finding:
    """A sentence about a result: good news, a warning, or neither."""

    text: str
    kind: Literal["good", "bad", ""] = ""


@dataclass(frozen=True)
class Bar:
    """A value beside others: `percent` of the widest bar."""

    name: str
    value: float
    percent: float
    own: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How good a model is, in a few lines.

    Attributes:
        metric, split (`str`): What is judged, and on which split.
        result (`Interval`): Its value and 95 % interval.
        size (`str`): What it was measured on, such as `227 rows`.
        rivals (`Mapping[str, float]`): What costs nothing, by name: the same metric of a constant answer, of chance.
        findings (`Sequence[Finding]`): What to know about the result.
        next_steps (`Sequence[str]`): What to try, the most promising first.
    """

    metric: str
    split: str
    result: Interval
    size: str
    rivals: Mapping[str, float] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    next_steps: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Metric and split."""
        return f"{METRIC_TITLES.get(self.metric, self.metric)}, {self.split} split"

    @property
    def value(self) -> float:
        """The metric's value."""
        return self.result.value

    @property
    def precision(self) -> str:
        """The interval, where there is one, and on how much it was measured."""
        if self.result.low == self.result.high:
            return self.size
        return f"95 % interval {self.result.low:.4f} to {self.result.high:.4f}, {self.size}"

    @property
    def bars(self) -> list[Bar]:
        """This model and its rivals, the best on top."""
        values = {"this model": self.value, **self.rivals}
        largest = max(*values.values(), 1e-9)
        widest = 1.0 if 0.3 < largest <= 1 else largest
        bars = [
            Bar(name, value, round(100 * max(value, 0.0) / widest, 1), name == "this model")
            for name, value in values.items()
        ]
        return sorted(bars, key=lambda bar: bar.value, reverse=greater_is_better(self.metric))


def judged_split(measured: Mapping[str, SplitT]) -> tuple[str, SplitT] | None:
    """The split that a verdict is about: test, else validation, else the last one; None where nothing was measured."""
    split = next((name for name in ("test", "validation", *reversed(tuple(measured))) if name in measured), None)
    return None if split is None else (split, measured[split])


def caption_verdict(
    run: RunFacts, split: str, evaluation: CaptionEvaluation, baselines: Mapping[str, Mapping[str, float]]
) -> Verdict | None:
    """The verdict on generated captions; None when there is no image.

    Args:
        run (`RunFacts`): Names the metric that checkpoints were chosen by; ROUGE-L is judged if that was the loss.
        split (`str`): The split's name.
        evaluation (`CaptionEvaluation`): Its numbers.
        baselines (`Mapping[str, Mapping[str, float]]`): Name → what `caption_metrics` says of it; may be empty.
    """
    if not evaluation.num_images:
        return None
    metric = run.best_metric if run.best_metric in evaluation.per_image else "rougeL"
    value = evaluation.metrics[metric]
    result = Interval(value, *evaluation.intervals.get(metric, (value, value)))
    rivals = {name: each[metric] for name, each in baselines.items() if metric in each}
    findings = [_against(rivals, result), *_times(baselines)] if rivals else []
    others = [name for name in ("rougeL", "cider", "bleu4") if name != metric and name in evaluation.metrics]
    findings.append(
        Finding(", ".join(f"{METRIC_TITLES[name]} {evaluation.metrics[name]:.4f}" for name in others) + ".")
    )
    if evaluation.num_empty:
        empty = "1 caption is" if evaluation.num_empty == 1 else f"{evaluation.num_empty:,} captions are"
        findings.append(Finding(f"{empty} empty.", "bad"))
    return Verdict(
        metric=metric,
        split=split,
        result=result,
        size=f"{evaluation.num_images:,} images",
        rivals=rivals,
        findings=findings,
        next_steps=steps_to_try(run, metric, rivals, result),
    )


def retrieval_verdict(
    run: RunFacts,
    split: str,
    evaluation: RetrievalEvaluation,
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> Verdict:
    """The verdict on a dual encoder, by the mean of its recalls.

    Args:
        run (`RunFacts`): The run.
        split (`str`): The split's name.
        evaluation (`RetrievalEvaluation`): Its numbers.
        baselines (`Mapping[str, Mapping[str, float]]`, *optional*): Name → metrics, beside chance.
    """
    metric = "mean_recall"
    result = recall_interval(evaluation)
    rivals = {"chance": chance_recall(evaluation)}
    rivals |= {name: each[metric] for name, each in (baselines or {}).items() if metric in each}
    found = evaluation.metrics
    ways = [
        f"{title}: recall@1 {found[f'{way}_recall@1']:.4f}, median rank {found[f'{way}_median_rank']:,.0f} "
        f"of {candidates:,}."
        for way, title, candidates in (
            ("image_to_text", "Image to text", len(evaluation.captions)),
            ("text_to_image", "Text to image", evaluation.num_images),
        )
    ]
    return Verdict(
        metric=metric,
        split=split,
        result=result,
        size=f"{evaluation.num_images:,} images, {len(evaluation.captions):,} captions",
        rivals=rivals,
        findings=[_against(rivals, result), *_times(baselines), *map(Finding, ways)],
        next_steps=steps_to_try(run, metric, rivals, result),
    )


class HasRivals(Protocol):
    """What evaluating one split gave, and what stands beside it."""

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def constants(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def baselines(self) -> Mapping[str, Mapping[str, float]]: ...


def verdict_beside(
    run: RunFacts,
    split: str,
    metric: str,
    result: Interval,
    *,
    size: str,
    measured: HasRivals,
    others: Sequence[str] = (),
    findings: Sequence[Finding] = (),
    steps: Sequence[str] = (),
) -> Verdict:
    """The verdict on a model by one of its metrics, beside constant answers and baselines.

    Args:
        run (`RunFacts`): Its curves and data are looked at.
        split (`str`): The split's name.
        metric (`str`): What is judged.
        result ([`Interval`]): The model's.
        size (`str`): What it was measured on.
        measured ([`HasRivals`]): All that was measured.
        others (`Sequence[str]`): Metrics to name, too.
        findings, steps (`Sequence`): What else to know, and to try.
    """
    beside = {**measured.constants, **measured.baselines}
    rivals = {name: each[metric] for name, each in beside.items() if metric in each}
    known = [_against(rivals, result, greater=greater_is_better(metric))] if rivals else []
    known += _times(measured.baselines)
    said = [f"{METRIC_TITLES[name]} {measured.metrics[name]:.4f}" for name in others if name in measured.metrics]
    if said:
        known.append(Finding(f"{', '.join(said)}."))
    return Verdict(
        metric=metric,
        split=split,
        result=result,
        size=size,
        rivals=rivals,
        findings=[*known, *findings],
        next_steps=steps_to_try(run, metric, rivals, result, steps),
    )


def _against(rivals: Mapping[str, float], result: Interval, *, greater: bool = True) -> Finding:
    sign = 1 if greater else -1
    name, value = max(rivals.items(), key=lambda rival: sign * rival[1])
    worst = sign * (result.low if greater else result.high)
    if worst > sign * value:
        interval = (
            "" if result.low == result.high else f"; the whole interval lies {'above' if greater else 'below'} it"
        )
        return Finding(f"Better than {name} ({value:.4f}){interval}.", "good")
    if sign * result.value > sign * value:
        return Finding(f"Hardly better than {name} ({value:.4f}), which lies within the interval.", "bad")
    beaten = [f"{other} ({each:.4f})" for other, each in rivals.items() if worst > sign * each]
    if beaten:
        return Finding(f"Better than {' and '.join(beaten)}, not yet as good as {name} ({value:.4f}).")
    return Finding(f"No better than {name} ({value:.4f}).", "bad")


def _times(baselines: Mapping[str, Mapping[str, float]] | None) -> list[Finding]:
    """How little time the baselines took."""
    taken = [f"{name} {each[CPU_SECONDS]:.1f} s" for name, each in (baselines or {}).items() if CPU_SECONDS in each]
    return [Finding(f"CPU time without training a network: {', '.join(taken)}.")] if taken else []


def modality_finding(modalities: ModalityEvaluation | None) -> tuple[list[Finding], list[str]]:
    """Whether one modality alone does as well as all of them, and what to try then."""
    if modalities is None or not modalities.num_rows:
        return [], []
    names, metric = modalities.modalities, modalities.metric
    views = [modalities.metrics[view].get(metric) for view in ("both", *(f"{name}_only" for name in names))]
    if None in views:
        return [], []
    both, *alone = (float(value) for value in views if value is not None)
    sign, margin = (1, _SHORTCUT) if greater_is_better(metric) else (-1, _SHORTCUT * both)
    best = max(alone, key=lambda value: sign * value)
    every = "both" if len(names) == 2 else "all"
    by_each = ", ".join(f"{value:.4f} by the {name} alone" for name, value in zip(names, alone, strict=True))
    title = METRIC_TITLES[metric]
    numbers = f"{title[0].lower()}{title[1:]} {both:.4f} with {every}, {by_each}"
    if sign * best < sign * both - margin:
        return [Finding(f"It needs {', '.join(names[:-1])} and {names[-1]}: {numbers}.", "good")], []
    strong = names[alone.index(best)]
    weak = [name for name in names if name != strong]
    step = (
        f"model.modalities.dropout: {{{strong}: 0.3}} or loss.auxiliary_weight: "
        f"{{{', '.join(f'{name}: 0.3' for name in weak)}}}, so that {' and '.join(f'the {name}' for name in weak)} "
        f"{'is' if weak in (['image'], ['text']) else 'are'} learnt from too."
    )
    does = "do" if strong == "columns" else "does"
    said = f"A shortcut: the {strong} alone {does} as well as {every}. {numbers[0].upper()}{numbers[1:]}."
    return [Finding(said, "bad")], [step]


def calibration_finding(calibration: CalibrationEvaluation | None) -> tuple[list[Finding], list[str]]:
    """Whether the confidence is that of a model that knows how often it is right, and what to try if not."""
    if calibration is None or not calibration.bins:
        return [], []
    sizes = np.array([each.num_rows for each in calibration.bins])
    said, true = (
        float(np.average([getattr(each, name) for each in calibration.bins], weights=sizes))
        for name in ("confidence", "accuracy")
    )
    numbers = (
        f"it is {said:.1%} sure on average and {true:.1%} right; calibration error {calibration.metrics['ece']:.4f}"
    )
    if calibration.metrics["ece"] <= LARGE_ECE:
        return [Finding(f"Its confidence can be trusted: {numbers}.", "good")], []
    way = "Overconfident" if said > true else "Underconfident"
    steps = [] if calibration.temperature != 1 else ["evaluation.calibrate: true, for probabilities that hold."]
    return [Finding(f"{way}: {numbers}.", "bad")], steps
