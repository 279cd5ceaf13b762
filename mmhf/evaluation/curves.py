"""A training over its steps: what Trainer's `log_history` holds, as series and as a picture with its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmhf.recipe.training_sections import greater_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE_PREFIX = "lr/"
"""A log entry's `lr/GROUP` is the learning rate of a parameter group."""

_TRAINING_KEYS = ("loss", "learning_rate")
_TRAIN, _VALIDATION = "#9ca3af", "#2563eb"
_RATES = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_PANEL_CHARACTERS = 68
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "f1_macro": "Macro-F1",
    "map": "Mean average precision",
    "f1_micro": "Micro-F1",
    "f1_samples": "Samples-F1",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "spearman": "Spearman",
    "kappa_quadratic": "Quadratic kappa",
    "vqa_accuracy": "VQA accuracy",
    "exact_match": "Exact match",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "mean_recall": "Mean recall",
    "image_to_text_recall": "Recall, image to text",
    "text_to_image_recall": "Recall, text to image",
    "zero_shot_accuracy": "Zero-shot accuracy",
}
"""What a metric is called in headings; recall@1, @5 and @10 share a panel."""
_PANELS = (
    ("accuracy",),
    ("map",),
    ("f1_micro",),
    ("f1_macro",),
    ("mae",),
    ("r2",),
    ("kappa_quadratic",),
    ("vqa_accuracy",),
    ("exact_match",),
    ("rougeL",),
    ("cider",),
    *(tuple(f"{way}_recall@{k}" for k in (1, 5, 10)) for way in ("image_to_text", "text_to_image")),
    ("zero_shot_accuracy",),
)
"""Metrics that are drawn where they were logged, those of one panel together."""


class Series(NamedTuple):
    """One logged number: steps and values of equal length."""

    steps: list[int]
    values: list[float]


class StageSpan(NamedTuple):
    """A stage and the steps it took: after `start`, up to and with `end`."""

    name: str
    start: int
    end: int


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> Series:
    """All values of one key.

    Where a step has several (the evaluation of the best model when training is over repeats the last step), the first
    one is kept: the one that belongs to the curve.
    """
    by_step: dict[int, float] = {}
    for entry in log_history:
        if key in entry:
            by_step.setdefault(int(entry["step"]), float(entry[key]))
    return Series(sorted(by_step), [by_step[step] for step in sorted(by_step)])


def rate_series(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Learning rates by group; groups whose curves are equal share one entry, `FIRST … LAST (3 groups)`.

    Without any `lr/GROUP`, Trainer's own `learning_rate` stands alone.
    """
    keys = dict.fromkeys(key for entry in log_history for key in entry if key.startswith(RATE_PREFIX))
    groups: dict[str, Series] = {key.removeprefix(RATE_PREFIX): series(log_history, key) for key in keys}
    if not groups:
        only = series(log_history, "learning_rate")
        return {"learning rate": only} if only.steps else {}
    alike: dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]] = {}
    for group, curve in groups.items():
        alike.setdefault((tuple(curve.steps), tuple(curve.values)), []).append(group)
    return {_joint_name(names): groups[names[0]] for names in alike.values()}


def stage_spans(log_history: Sequence[Mapping[str, Any]]) -> list[StageSpan]:
    """The stages, in order, from the entries that name one.

    A stage ends at the last step that was logged in it, which is its true last step when `logging_steps` divides it.
    """
    spans: list[StageSpan] = []
    for entry in sorted((entry for entry in log_history if "stage" in entry), key=lambda entry: entry["step"]):
        name, step = str(entry["stage"]), int(entry["step"])
        if spans and spans[-1].name == name:
            spans[-1] = spans[-1]._replace(end=step)
        else:
            spans.append(StageSpan(name, spans[-1].end if spans else 0, step))
    return spans


def has_values(log_history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything in the log can be drawn."""
    return any(key in _TRAINING_KEYS or key.startswith("eval_") for entry in log_history for key in entry)


def _joint_name(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} groups)"


def save_training_curves(
    folder: Path, log_history: Sequence[Mapping[str, Any]], best_metric: str | None
) -> dict[str, Path]:
    """Draw `training_curves.png` into a folder; gives `training_curves` → PNG, nothing of a log without numbers."""
    if not has_values(log_history):
        return {}
    path = folder / "training_curves.png"
    plot_training_curves(log_history, path, best_metric=best_metric)
    return {"training_curves": path}


def plot_training_curves(
    log_history: Sequence[Mapping[str, Any]], path: str | Path, *, best_metric: str | None = None
) -> None:
    """Draw a panel for the loss (training and validation), for each metric of the task, and for the learning rates.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`): `TrainerState.log_history`. `lr/GROUP` entries are rates by group;
            where the `stage` of two entries differs, a dashed line stands between the stages.
        path (`str` or `Path`): the PNG; parent folders are made.
        best_metric (`str`, *optional*): what checkpoints were chosen by, without `eval_`; it is drawn in any case.
    """
    drawn = [metrics for metrics in _PANELS if any(series(log_history, f"eval_{name}").steps for name in metrics)]
    already = {"loss", *(name for metrics in drawn for name in metrics)}
    if best_metric is not None and best_metric not in already and series(log_history, f"eval_{best_metric}").steps:
        drawn.insert(0, (best_metric,))
    num_rows = (len(drawn) + 3) // 2
    figure = new_figure(11.0, 3.7 * num_rows)
    panels = list(figure.subplots(num_rows, 2, squeeze=False).flat)
    if len(drawn) % 2:
        panels.pop().remove()
    _draw_loss(panels[0], log_history)
    for axes, metrics in zip(panels[1:-1], drawn, strict=True):
        _draw_metrics(axes, log_history, metrics)
    _draw_rates(panels[-1], log_history)
    spans = stage_spans(log_history)
    last_step = max((int(entry["step"]) for entry in log_history), default=1)
    characters = _PANEL_CHARACTERS / max(last_step, 1)
    fits = all(len(span.name) <= int(characters * (span.end - span.start)) for span in spans)
    for axes in panels:
        _finish(axes, last_step)
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, pad=18 if len(spans) > 1 else 6)
        if len(spans) > 1 and axes.lines:
            _mark_stages(axes, spans, by_name=fits)
    if len(spans) > 1 and not fits:
        key = "stages:   " + "    ".join(f"{number} {_cut(span.name, 40)}" for number, span in enumerate(spans, 1))
        figure.supxlabel(key, fontsize=9, color="#4b5563", parse_math=False, wrap=True)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; matplotlib is loaded when the first one is made."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, equal figures as equal bytes; parent folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})


def _draw_loss(axes: Axes, log_history: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Loss", loc="left")
    drawn = [
        _draw(axes, series(log_history, "loss"), color=_TRAIN, label="training"),
        _draw(axes, series(log_history, "eval_loss"), color=_VALIDATION, label="validation"),
    ]
    if any(drawn):
        axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_metrics(axes: Axes, log_history: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """The curves of one panel, each with its best value in the legend; a dot marks it."""
    kind = metrics[0].split("@")[0]
    axes.set_title(f"{METRIC_TITLES.get(kind, kind)} (validation)", loc="left", parse_math=False)
    if len(metrics) == 1 and _draw(axes, series(log_history, kind), color=_TRAIN, label="training"):
        axes.set_title(METRIC_TITLES.get(kind, kind), loc="left", parse_math=False)
    for position, metric in enumerate(metrics):
        curve, color = series(log_history, f"eval_{metric}"), _RATES[position]
        if not np.isfinite(curve.values).any():
            _draw(axes, curve, color=color, label=None)
            continue
        best = int((np.nanargmax if greater_is_better(metric) else np.nanargmin)(curve.values))
        at_k = f"@{metric.split('@')[1]}: " if "@" in metric else ""
        label = f"{at_k}best {curve.values[best]:.4f}, step {curve.steps[best]:,}"
        _draw(axes, curve, color=color, label=label)
        axes.plot(curve.steps[best], curve.values[best], "o", color=color, markersize=6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_rates(axes: Axes, log_history: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib import colormaps

    axes.set_title("Learning rate", loc="left")
    curves = {
        name: Series(curve.steps, [value if value > 0 else float("nan") for value in curve.values])
        for name, curve in rate_series(log_history).items()
    }
    peaks = [np.nanmax(curve.values) for curve in curves.values() if np.isfinite(curve.values).any()]
    if not peaks:
        return
    labelled = set(np.linspace(0, len(curves) - 1, min(len(curves), len(_RATES))).astype(int).tolist())
    for position, (name, curve) in enumerate(curves.items()):
        # Earlier curves are wider, so that equal rates do not hide one another.
        width = 1.4 + 1.6 * (len(curves) - 1 - position) / len(curves)
        label = _cut(name, 44) if position in labelled else None
        has_own = len(curves) <= len(_RATES)
        color = _RATES[position] if has_own else colormaps["viridis"](0.9 * position / (len(curves) - 1))
        _draw(axes, curve, color=color, label=label, width=width)
    lowest = min(np.nanmin(curve.values) for curve in curves.values() if np.isfinite(curve.values).any())
    if max(peaks) > 20 * lowest:
        axes.set_yscale("log")
        axes.set_ylim(max(lowest, min(peaks) / 100) / 1.5, max(peaks) * 1.5)
    title = f"{len(labelled)} of {len(curves)} curves" if len(labelled) < len(curves) else None
    axes.legend(
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        title=title,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=2,
    )


def _draw(axes: Axes, curve: Series, *, color: Any, label: str | None, width: float = 1.6) -> bool:
    if not curve.steps:
        return False
    marker = "." if len(curve.steps) <= 40 else None
    axes.plot(curve.steps, curve.values, color=color, label=label, linewidth=width, marker=marker, markersize=5)
    return True


def _finish(axes: Axes, last_step: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, max(last_step, 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#eef0f3")
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.lines:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color="#9ca3af")
        axes.set_yticks([])


def _mark_stages(axes: Axes, spans: Sequence[StageSpan], *, by_name: bool) -> None:
    for number, span in enumerate(spans, 1):
        if number > 1:
            axes.axvline(span.start, color="#6b7280", linestyle="--", linewidth=0.9, zorder=1)
        axes.annotate(
            span.name if by_name else str(number),
            ((span.start + span.end) / 2, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color="#6b7280",
            parse_math=False,
        )


def _cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
