"""Where a run is, on a terminal as a progress bar, in a log file as lines."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.training.boundary import StageCallback

logger = logging.getLogger(__name__)

_BAR = "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_WINDOW = 50
"""Steps that the speed is averaged over."""
_SHOWN_METRICS = 3
_UNSHOWN = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")

RatesByName = Callable[[int], dict[str, float]]
"""Finished steps → learning rates of the step after them, by the name of what they move."""


class StageSpeed:
    """Steps per second over the last steps of the stage under way, from one step's end to the next.

    Stages differ by an order of magnitude once features are stored, and so do the first steps of one, which fill the
    store, from the others: neither says how long the rest of a stage takes.
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
        """Note the time behind it."""
        self._ends.append((global_step, time.monotonic()))

    def per_second(self) -> float:
        """Steps per second; 0 before the first step."""
        if len(self._ends) < 2:
            return 0.0
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        return (last - first) / max(ended - began, 1e-9)

    def left(self, global_step: int) -> str:
        """The time that is left in the stage, and how many stages follow."""
        plan = self.stages.plan
        end = plan.spans()[self._stage][1] if self._stage >= 0 else plan.last_step
        told = tqdm.format_interval(max(end - global_step, 0) / max(self.per_second(), 1e-9))
        return f"{told} left" if self._stage + 1 == len(plan.stages) else f"{told} left in the stage"


class StageProgressBar(ProgressCallback):
    """The progress bar of transformers with the stage, loss, learning rates and samples per second on it."""

    training_bar: tqdm | None
    prediction_bar: tqdm | None

    def __init__(self, stages: StageCallback, describe_rates: RatesByName) -> None:
        super().__init__()
        self.stages = stages
        self.describe_rates = describe_rates
        self.speed = StageSpeed(stages)

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
        self.speed.step_begins(state.global_step)
        if self.training_bar is not None:
            self.training_bar.total = self.stages.plan.last_step
            self.training_bar.set_description(stage_label(self.stages), refresh=False)

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
        if self.training_bar is None or not logs or "loss" not in logs:
            return
        rates = _rates_text(self.describe_rates(state.global_step - 1))
        speed = self.speed.per_second() * _samples_per_step(args)
        left = self.speed.left(state.global_step)
        self.training_bar.set_postfix_str(
            f"{left}, loss {logs['loss']:.4f}, lr {rates}, {speed:.0f} samples/s{_device_memory(args)}"
        )

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False
            self.prediction_bar.set_description("evaluating", refresh=False)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        logger.info(_evaluation_line(state, metrics or {}))


class StageLogLines(TrainerCallback):
    """One line for each time that Trainer logs, for output that is not a terminal."""

    def __init__(self, stages: StageCallback, describe_rates: RatesByName) -> None:
        self.stages = stages
        self.describe_rates = describe_rates
        self.speed = StageSpeed(stages)

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
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        logger.info(
            "%s: step %d of %d, loss %.4f, lr %s, %.0f samples/s%s, %s",
            stage_label(self.stages),
            state.global_step,
            self.stages.plan.last_step,
            logs["loss"],
            _rates_text(self.describe_rates(state.global_step - 1)),
            self.speed.per_second() * _samples_per_step(args),
            _device_memory(args),
            self.speed.left(state.global_step),
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            logger.info(_evaluation_line(state, metrics or {}))


def stage_label(stages: StageCallback) -> str:
    """The stage under way, by name and number."""
    if stages.current is None:
        return "starting"
    return f"{stages.current.stage.name} ({stages.current.index + 1}/{len(stages.plan.stages)})"


def _rates_text(rates: Mapping[str, float]) -> str:
    """Rates by prefix of what trains, those of one rate joined: `vision=1.0e-05..1.0e-04 fusion+head=5.0e-04`."""
    by_prefix: dict[str, list[float]] = {}
    for name, rate in rates.items():
        by_prefix.setdefault(name.split(".")[0], []).append(rate)
    by_rate: dict[str, list[str]] = {}
    for prefix, of in by_prefix.items():
        by_rate.setdefault(_span(min(of), max(of)), []).append(prefix)
    return " ".join(f"{'+'.join(prefixes)}={rate}" for rate, prefixes in by_rate.items())


def _span(lowest: float, highest: float) -> str:
    first, last = f"{lowest:.1e}", f"{highest:.1e}"
    return first if first == last else f"{first}..{last}"


def _samples_per_step(args: TrainingArguments) -> int:
    samples: int = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return samples


def _device_memory(args: TrainingArguments) -> str:
    """The most that tensors have taken on the GPU at once; nothing without one."""
    if args.device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(args.device) / 2**30:.1f} GiB"


def _evaluation_line(state: TrainerState, metrics: Mapping[str, float]) -> str:
    measured = [(name, value) for name, value in metrics.items() if name.startswith("eval_") and name not in _UNSHOWN]
    shown = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in measured[:_SHOWN_METRICS])
    return f"Validation after step {state.global_step}: {shown}"
