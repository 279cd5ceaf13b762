"""Where a run is: a progress bar on a terminal, lines in a log file, one block of output in a notebook."""

from __future__ import annotations

import html
import itertools
import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from mmhf.training.boundary import StageCallback

logger = logging.getLogger(__name__)

_BAR = "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_WINDOW = 50
"""Steps that the speed is averaged over."""
_SHOWN_METRICS = 3
_SHOWN_EVALUATIONS = 30
_UNSHOWN = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class StageSpeed:
    """Steps per second over the last steps of the stage under way, from one step's end to the next.

    Once features are stored, stages differ by an order of magnitude, so one says nothing of another's speed.
    """

    def __init__(self, stages: StageCallback) -> None:
        self.stages = stages
        self._ends: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._stage = -1

    def step_begins(self, global_step: int) -> None:
        """Note the time before a step."""
        index = -1 if self.stages.current is None else self.stages.current.index
        if index != self._stage or not self._ends:
            self._stage = index
            self._ends.clear()
            self._ends.append((global_step, time.monotonic()))

    def step_ends(self, global_step: int) -> None:
        """Note the time after it."""
        self._ends.append((global_step, time.monotonic()))

    def per_second(self) -> float:
        """Steps per second; 0 before the first step. The median, because evaluations and checkpoints come between."""
        times = [time for _, time in self._ends]
        if len(times) < 2:
            return 0.0
        return 1 / max(statistics.median(after - before for before, after in itertools.pairwise(times)), 1e-9)

    def left(self, global_step: int) -> str:
        """The time that is left in the stage, and how many stages follow."""
        plan = self.stages.plan
        end = plan.spans()[self._stage][1] if self._stage >= 0 else plan.last_step
        told = "?"
        if len(self._ends) > 1:
            (first, began), (last, ended) = self._ends[0], self._ends[-1]
            # The mean: what comes between steps takes its time.
            told = tqdm.format_interval(max(end - global_step, 0) * (ended - began) / max(last - first, 1))
        return f"{told} left" if self._stage + 1 == len(plan.stages) else f"{told} left in the stage"


class _StageProgress(TrainerCallback):
    """Measures speed, and shows the losses that Trainer logs and its evaluations, once for all processes."""

    def __init__(self, stages: StageCallback) -> None:
        super().__init__()
        self.stages = stages
        self.speed = StageSpeed(stages)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.speed.step_begins(state.global_step)
        super().on_step_begin(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.speed.step_ends(state.global_step)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.show_loss(args, state, logs["loss"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero:
            measured = {
                name.removeprefix("eval_"): value
                for name, value in (metrics or {}).items()
                if name.startswith("eval_") and name not in _UNSHOWN
            }
            self.show_evaluation(state, dict(list(measured.items())[:_SHOWN_METRICS]))

    def show_loss(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        """Show the loss of the steps since the last one."""
        raise NotImplementedError

    def show_evaluation(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        """Show what was measured on the validation split."""
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("Validation after step %d: %s", state.global_step, shown)

    def rates_and_speed(self, args: TrainingArguments, state: TrainerState) -> str:
        """`lr head=1.0e-03, 52 samples/s, 1.2 GiB`, the last one on a GPU: the most that tensors took at once."""
        by_prefix: dict[str, list[float]] = {}
        for name, rate in self.stages.plan.learning_rates(state.global_step - 1).items():
            if rate > 0:
                by_prefix.setdefault(name.split(".")[0], []).append(rate)
        by_span: dict[str, list[str]] = {}
        for prefix, rates in by_prefix.items():
            span = "..".join(dict.fromkeys((f"{min(rates):.1e}", f"{max(rates):.1e}")))
            by_span.setdefault(span, []).append(prefix)
        told = " ".join(f"{'+'.join(prefixes)}={span}" for span, prefixes in by_span.items())
        samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        memory = ""
        if args.device.type == "cuda":
            memory = f", {torch.cuda.max_memory_allocated(args.device) / 2**30:.1f} GiB"
        return f"lr {told}, {self.speed.per_second() * samples:.0f} samples/s{memory}"


class StageProgressBar(_StageProgress, ProgressCallback):
    """The progress bar of transformers with the stage, loss, learning rates and samples per second on it."""

    training_bar: tqdm | None
    prediction_bar: tqdm | None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            # Begins where a resumed run goes on, so that speed and time left are those of now.
            self.training_bar = tqdm(
                total=self.stages.plan.last_step,
                initial=state.global_step,
                dynamic_ncols=True,
                bar_format=_BAR,
                desc="starting",
            )
        self.current_step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.total = self.stages.plan.last_step
            self.training_bar.set_description(stage_label(self.stages), refresh=False)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None and not self.prediction_bar.desc:  # it has just been made
            self.prediction_bar.leave = False
            self.prediction_bar.set_description("evaluating")

    def show_loss(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        if self.training_bar is not None:
            left = self.speed.left(state.global_step)
            self.training_bar.set_postfix_str(f"{left}, loss {loss:.4f}, {self.rates_and_speed(args, state)}")


class StageLogLines(_StageProgress):
    """One line for each time that Trainer logs, for output that is not a terminal."""

    def show_loss(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        logger.info(
            "%s: step %d of %d, loss %.4f, %s, %s",
            stage_label(self.stages),
            state.global_step,
            self.stages.plan.last_step,
            loss,
            self.rates_and_speed(args, state),
            self.speed.left(state.global_step),
        )


class NotebookProgress(_StageProgress):
    """One block of output that changes: a bar with stage, loss and time left, and a row for each evaluation."""

    def __init__(self, stages: StageCallback) -> None:
        super().__init__(stages)
        self._loss: float | None = None
        self._rows: list[dict[str, float]] = []
        self._handle: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML("starting"), display_id=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show(state, "done")

    def show_loss(self, args: TrainingArguments, state: TrainerState, loss: float) -> None:
        self._loss = loss
        self._show(state, f"{stage_label(self.stages)}, {self.speed.left(state.global_step)}")

    def show_evaluation(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        self._rows.append({"step": state.global_step, **metrics})
        self._show(state, f"{stage_label(self.stages)}, {self.speed.left(state.global_step)}")

    def _show(self, state: TrainerState, where: str) -> None:
        if self._handle is None or not state.is_world_process_zero:
            return
        last = max(self.stages.plan.last_step, 1)
        loss = "" if self._loss is None else f", loss {self._loss:.4f}"
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


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def stage_label(stages: StageCallback) -> str:
    """The stage under way, by name and number."""
    if stages.current is None:
        return "starting"
    return f"{stages.current.stage.name} ({stages.current.index + 1}/{len(stages.plan.stages)})"


def replace_progress(trainer: Trainer, stages: StageCallback) -> None:
    """Show where a run is, with its stages, in place of what transformers shows."""
    with_bar = not trainer.args.disable_tqdm
    trainer.remove_callback(ProgressCallback if with_bar else PrinterCallback)
    show: type[_StageProgress] = StageProgressBar if with_bar else StageLogLines
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if type(shell).__name__ == "ZMQInteractiveShell":  # the kernel of a notebook, and not a terminal's IPython
        trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
        show = NotebookProgress
    trainer.add_callback(show(stages))
