"""Callbacks that switch the stages and choose what is saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from mmhf.errors import InputError
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.recipe.schema import PlateauSection, StageSection
from mmhf.training.best_weights import BestWeights
from mmhf.training.boundary_checks import (
    check_gradients,
    check_ranks_agree,
    gradients_are_visible,
    is_sharded,
    share_buffers,
)
from mmhf.training.freezing import apply_freezing
from mmhf.training.optimizers import configure_groups
from mmhf.training.plateau import metric_key, scores_since, stalled
from mmhf.training.stages import PlannedStage, StagePlan, StageScheduler

logger = logging.getLogger(__name__)


class StageCallback(TrainerCallback):
    """Moves a Trainer through the stages of a plan; works with `transformers.Trainer` and `MMTrainer` alike.

    At each boundary it freezes and thaws, sets rates and optimizer options, and checks that all processes hold the
    same weights; at the first step of a stage it checks that all that newly trains received a gradient.

    Args:
        plan (`StagePlan`): The stages; its optimizer and scheduler must be the Trainer's.
        early_stopping (`PlateauSection`, *optional*): When to end the run before its time.
        unfreeze_on_plateau (`PlateauSection`, *optional*): When to go on to the next stage before its time, for
            stages that do not say.
    """

    def __init__(
        self,
        plan: StagePlan,
        early_stopping: PlateauSection | None = None,
        unfreeze_on_plateau: PlateauSection | None = None,
    ) -> None:
        self.plan = plan
        self.early_stopping = early_stopping
        self.unfreeze_on_plateau = unfreeze_on_plateau
        self._applied: int | None = None
        self._awaiting_gradients: tuple[str, ...] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._applied = None
        if is_sharded():
            refuse_what_needs_whole_weights(self.plan)
        if self.plan.locate(state.global_step) is None:
            control.should_training_stop = True
        else:
            self._enter_stage(args, state, **kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        position = self.plan.locate(state.global_step)
        if position is not None and position.index != self._applied:
            self._enter_stage(args, state, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._awaiting_gradients and gradients_are_visible():
            check_gradients(self.plan.model, self._awaiting_gradients)
            self._awaiting_gradients = ()

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
        position = self.plan.locate(state.global_step - 1)
        if position is None or not metrics:
            return
        stage = self.plan.stages[position.index]
        if stage.section.carry_best is not None:
            key = metric_key(stage.section.carry_best, metrics, setting=f"stage {stage.name!r}: carry_best")
            scores = scores_since(state.log_history, key, position.started_at)
            if max(scores, key=lambda step: (scores[step], -step)) == state.global_step and args.should_save:
                self._best_weights(args, stage).save(self.plan.model)
        if self._has_stalled(self.early_stopping, "early_stopping.metric", state, metrics, since=0):
            logger.info("Step %d: %s stalled, the run ends", state.global_step, self.early_stopping.metric)  # type: ignore[union-attr]
            self.plan.end_run(state.global_step)  # so that a resumed run knows
            control.should_training_stop = True
            return
        patience = stage.section.unfreeze_on_plateau or self.unfreeze_on_plateau
        if self._has_stalled(patience, "unfreeze_on_plateau.metric", state, metrics, since=position.started_at):
            logger.info("Step %d: %s stalled, stage %s ends", state.global_step, patience.metric, stage.name)  # type: ignore[union-attr]
            self.plan.end_stage(state.global_step)
            if self.plan.locate(state.global_step) is None:
                control.should_training_stop = True

    @staticmethod
    def _has_stalled(
        settings: PlateauSection | None, setting: str, state: TrainerState, metrics: dict[str, float], *, since: int
    ) -> bool:
        if settings is None:
            return False
        key = metric_key(settings.metric, metrics, setting=setting)
        return stalled(scores_since(state.log_history, key, since).values(), settings)

    @staticmethod
    def _log_before_saving(control: TrainerControl) -> None:
        # The running loss is not part of a checkpoint: logging it first makes a resumed run log the same numbers.
        if control.should_save:
            control.should_log = True

    def _enter_stage(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: StageScheduler,
        **kwargs: Any,
    ) -> None:
        position = self.plan.locate(state.global_step)
        assert position is not None
        if position.step == 0 and position.index > 0:
            self._carry_best_weights(args, self.plan.stages[position.index - 1])
        stage = self.plan.stages[position.index]
        hold_batch_norm = stage.section.batch_norm == "frozen"
        apply_freezing(unwrap_model(model), self.plan.partition, stage.curves, hold_batch_norm=hold_batch_norm)
        configure_groups(optimizer.param_groups, self.plan.optimizer_choices(position.index))
        set_label_smoothing(self.plan.model, stage.section)
        lr_scheduler.refresh()
        share_buffers(self.plan.model, args)
        check_ranks_agree(self.plan.model, args)
        self._awaiting_gradients = self._newly_trained(position.index)
        self._applied = position.index
        logger.info(
            "Stage %s (%d of %d): %d steps, training %s",
            stage.name,
            position.index + 1,
            len(self.plan.stages),
            stage.num_steps,
            ", ".join(stage.curves),
        )

    def _newly_trained(self, index: int) -> tuple[str, ...]:
        before = set() if index == 0 else set(self.plan.stages[index - 1].curves)
        new = [group for group in self.plan.stages[index].curves if group not in before]
        return tuple(name for group in new for name in self.plan.partition[group])

    def _best_weights(self, args: TrainingArguments, stage: PlannedStage) -> BestWeights:
        return BestWeights(Path(str(args.output_dir)) / "best_of_stage" / f"{stage.name}.safetensors")

    def _carry_best_weights(self, args: TrainingArguments, finished: PlannedStage) -> None:
        if finished.section.carry_best is not None:
            torch.distributed.barrier() if args.world_size > 1 else None
            self._best_weights(args, finished).load(self.plan.model)
            logger.info("Stage %s goes on from its best %s", finished.name, finished.section.carry_best)


def refuse_what_needs_whole_weights(plan: StagePlan) -> None:
    """Refuse a plan that cannot be trained where FSDP or DeepSpeed keep parts of the weights on each process.

    Raises:
        InputError: A stage carries its best weights over, or the run has several kinds of optimizer.
    """
    whole = "needs whole weights on each process; FSDP and DeepSpeed keep parts"
    for stage in plan.stages:
        if stage.section.carry_best is not None:
            raise InputError(f"stage {stage.name!r}: carry_best {whole}, remove it")
    choices = [choice for index in range(len(plan.stages)) for choice in plan.optimizer_choices(index).values()]
    if len({choice.optimizer_class for choice in choices}) > 1:
        raise InputError(f"stages: more than one kind of optimizer {whole}, choose one")


def set_label_smoothing(model: PreTrainedModel, section: StageSection) -> None:
    """Give the model's loss the label smoothing of a stage, or its own.

    Raises:
        InputError: The stage asks for it, and the model's loss has none.
    """
    losses = [module for module in model.modules() if isinstance(module, ClassificationLoss)]
    if section.label_smoothing is not None and not losses:
        raise InputError(f"stage {section.name!r}: label_smoothing is for classifiers, not for {type(model).__name__}")
    for loss in losses:
        own = model.config.label_smoothing
        loss.label_smoothing = own if section.label_smoothing is None else section.label_smoothing


class SaveEveryEpochs(TrainerCallback):
    """With `save_strategy="epoch"`, saves after every `every` epochs instead of each, and at the end of the plan."""

    def __init__(self, plan: StagePlan, every: int) -> None:
        self.plan = plan
        self.every = every

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_last = self.plan.locate(state.global_step) is None
        if args.save_strategy == "epoch" and round(state.epoch or 0) % self.every and not is_last:
            control.should_save = False
