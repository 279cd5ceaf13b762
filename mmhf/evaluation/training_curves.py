"""The picture of a training: loss, metrics and learning rates over steps, with its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmhf.evaluation.log_series import Series, StageSpan, rate_series, series, stage_spans

_TRAIN, _VALIDATION = "#9ca3af", "#2563eb"
_RATES = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_PANEL_CHARACTERS = 68
_METRIC_TITLES = {"accuracy": "Accuracy", "f1_macro": "Macro-F1"}


def plot_training_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw four panels: loss (training and validation), accuracy, macro-F1, learning rates by group.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`): `TrainerState.log_history`. `lr/GROUP` entries are rates by group;
            where the `stage` of two entries differs, a dashed line stands between the stages.
        path (`str` or `Path`): the PNG; parent folders are made.
    """
    figure = Figure(figsize=(11.0, 7.4), layout="constrained")
    panels = figure.subplots(2, 2)
    _draw_loss(panels[0, 0], log_history)
    for axes, metric in zip((panels[0, 1], panels[1, 0]), _METRIC_TITLES, strict=True):
        _draw_metric(axes, log_history, metric)
    _draw_rates(panels[1, 1], log_history)
    spans = stage_spans(log_history)
    last_step = max((int(entry["step"]) for entry in log_history), default=1)
    fits = all(len(span.name) <= _room(span, last_step) for span in spans)
    for axes in panels.flat:
        _finish(axes, last_step)
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, pad=18 if len(spans) > 1 else 6)
        if len(spans) > 1 and axes.lines:
            _mark_stages(axes, spans, by_name=fits)
    if len(spans) > 1 and not fits:
        key = "stages:   " + "    ".join(f"{number} {_cut(span.name, 40)}" for number, span in enumerate(spans, 1))
        figure.supxlabel(key, fontsize=9, color="#4b5563", parse_math=False, wrap=True)
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


def _draw_metric(axes: Axes, log_history: Sequence[Mapping[str, Any]], metric: str) -> None:
    axes.set_title(f"{_METRIC_TITLES[metric]} (validation)", loc="left")
    curve = series(log_history, f"eval_{metric}")
    if not _draw(axes, curve, color=_VALIDATION, label=metric) or not np.isfinite(curve.values).any():
        return
    best = int(np.nanargmax(curve.values))
    axes.plot(curve.steps[best], curve.values[best], "o", color="#d97706", markersize=7, label="best")
    axes.legend(
        [axes.lines[-1]],
        [f"best {curve.values[best]:.4f}, step {curve.steps[best]:,}"],
        frameon=False,
        fontsize=8,
        loc="lower right",
    )


def _draw_rates(axes: Axes, log_history: Sequence[Mapping[str, Any]]) -> None:
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
        _draw(axes, curve, color=_rate_color(position, len(curves)), label=label, width=width)
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


def _rate_color(position: int, count: int) -> Any:
    return _RATES[position] if count <= len(_RATES) else colormaps["viridis"](0.9 * position / (count - 1))


def _draw(axes: Axes, curve: Series, *, color: Any, label: str | None, width: float = 1.6) -> bool:
    if not curve.steps:
        return False
    marker = "." if len(curve.steps) <= 40 else None
    axes.plot(curve.steps, curve.values, color=color, label=label, linewidth=width, marker=marker, markersize=5)
    return True


def _finish(axes: Axes, last_step: int) -> None:
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


def _room(span: StageSpan, last_step: int) -> int:
    return int(_PANEL_CHARACTERS * (span.end - span.start) / max(last_step, 1))


def _cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
