"""Where a run is, in a Jupyter notebook: one block of output that changes, in place of a line for each log entry."""

from __future__ import annotations

import html
import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.training.boundary import StageCallback
from mmhf.training.progress import RatesByName, StageSpeed, stage_label

_SHOWN_METRICS = 4
_SHOWN_EVALUATIONS = 30
_UNSHOWN = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook, and not a terminal's IPython."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookProgress(TrainerCallback):
    """A bar with stage, loss and time left, and below it a row for each evaluation."""

    def __init__(self, stages: StageCallback, describe_rates: RatesByName) -> None:
        self.stages = stages
        self.speed = StageSpeed(stages)
        self._loss: float | None = None
        self._rows: list[dict[str, Any]] = []
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML("starting"), display_id=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.speed.step_begins(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.speed.step_ends(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._loss = logs["loss"]
            self._show(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        measured = {
            name.removeprefix("eval_"): value
            for name, value in (metrics or {}).items()
            if name.startswith("eval_") and name not in _UNSHOWN
        }
        self._rows.append({"step": state.global_step, **dict(list(measured.items())[:_SHOWN_METRICS])})
        self._show(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show(state, ended=True)

    def _show(self, state: TrainerState, *, ended: bool = False) -> None:
        if self._handle is None or not state.is_world_process_zero:
            return
        last = max(self.stages.plan.last_step, 1)
        loss = "" if self._loss is None else f", loss {self._loss:.4f}"
        where = "done" if ended else f"{stage_label(self.stages)}, {self.speed.left(state.global_step)}"
        lines = [
            f"<div><progress value='{state.global_step}' max='{last}' style='width:300px'></progress> "
            f"step {state.global_step:,} of {last:,}{loss} · {html.escape(where)}</div>"
        ]
        if self._rows:
            names = list(dict.fromkeys(name for row in self._rows for name in row))
            head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
            body = "".join(
                "<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>"
                for row in self._rows[-_SHOWN_EVALUATIONS:]
            )
            lines.append(f"<table><tr>{head}</tr>{body}</table>")
        self._handle.update(self._html("".join(lines)))


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
