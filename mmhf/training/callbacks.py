"""Callbacks that switch the stages, end them early, and choose when to save."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from mmhf.errors import InputError
from mmhf.recipe.schema import EarlyStoppingSection
from mmhf.training.freezing import apply_freezing
from mmhf.training.stages import StagePlan, StageScheduler

logger = logging.getLogger(__name__)

_LOWER_IS_BETTER = ("loss", "error", "runtime")


class StageCallback(TrainerCallback):
    """Moves a Trainer through the stages of a plan; works with `transformers.Trainer` and `MMTrainer` alike.

    Args:
        plan (`StagePlan`): The stages; its optimizer and scheduler must be the Trainer's.
        early_stopping (`EarlyStoppingSection`, *optional*): When to end the run or the stage before its time.
    """

    def __init__(self, plan: StagePlan, early_stopping: EarlyStoppingSection | None = None) -> None:
        self.plan = plan
        self.early_stopping = early_stopping
        self._applied: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._applied = None
        if self.plan.locate(state.global_step) is None:
            control.should_training_stop = True
        else:
            self._enter_stage(state, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        position = self.plan.locate(state.global_step)
        if position is not None and position.index != self._applied:
            self._enter_stage(state, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.plan.locate(state.global_step) is None:
            control.should_training_stop = True
        self._log_before_saving(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log_before_saving(control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.early_stopping is None or not self._has_stalled(state, metrics or {}):
            return
        if self.early_stopping.scope == "run":
            logger.info("%s stalled: the run ends at step %d", self.early_stopping.metric, state.global_step)
            control.should_training_stop = True
            return
        self.plan.end_stage(state.global_step)
        logger.info("%s stalled: the stage ends at step %d", self.early_stopping.metric, state.global_step)
        if self.plan.locate(state.global_step) is None:
            control.should_training_stop = True

    @staticmethod
    def _log_before_saving(control: TrainerControl) -> None:
        # The running loss is not part of a checkpoint: logging it first makes a resumed run log the same numbers.
        if control.should_save:
            control.should_log = True

    def _enter_stage(self, state: TrainerState, model: nn.Module, lr_scheduler: StageScheduler, **kwargs: Any) -> None:
        position = self.plan.locate(state.global_step)
        assert position is not None
        stage = self.plan.stages[position.index]
        apply_freezing(unwrap_model(model), self.plan.partition, stage.peak_rates)
        lr_scheduler.refresh()
        self._applied = position.index
        logger.info(
            "Stage %d of %d, %s: %d steps, training %s",
            position.index + 1,
            len(self.plan.stages),
            stage.name,
            stage.num_steps,
            ", ".join(stage.peak_rates),
        )

    def _has_stalled(self, state: TrainerState, metrics: dict[str, float]) -> bool:
        """Whether the metric has not improved for `patience` evaluations.

        Read from the log history rather than from counters, so that a resumed run decides the same.
        """
        assert self.early_stopping is not None
        key = f"eval_{self.early_stopping.metric.removeprefix('eval_')}"
        if key not in metrics:
            known = ", ".join(sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_")))
            raise InputError(f"early_stopping.metric: {self.early_stopping.metric!r} is not measured; choose {known}")
        position = self.plan.locate(state.global_step - 1)
        begins_after = position.started_at if position and self.early_stopping.scope == "stage" else 0
        values = [entry[key] for entry in state.log_history if key in entry and entry["step"] > begins_after]
        sign = -1.0 if any(word in key for word in _LOWER_IS_BETTER) else 1.0
        return stalled((sign * value for value in values), self.early_stopping)


def stalled(scores: Iterable[float], settings: EarlyStoppingSection) -> bool:
    """Whether the last `patience` scores (higher is better) brought no improvement of more than `min_delta`."""
    best = float("-inf")
    without_improvement = 0
    for score in scores:
        if score > best + settings.min_delta or best == float("-inf"):
            best = score
            without_improvement = 0
        else:
            without_improvement += 1
    return without_improvement >= settings.patience


class SaveEveryEpochs(TrainerCallback):
    """With `save_strategy="epoch"`, saves after every `every` epochs instead of each."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_last = state.global_step >= state.max_steps
        if args.save_strategy == "epoch" and round(state.epoch or 0) % self.every and not is_last:
            control.should_save = False
