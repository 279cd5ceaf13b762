"""A stage begins: one method lists, in order, all that happens then."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from mmhf.errors import InputError
from mmhf.models.classification_loss import TargetLoss
from mmhf.models.quantization import describe_quantized
from mmhf.recipe.training_sections import PlateauSection, StageSection, greater_is_better
from mmhf.training.optimizers import StageScheduler, configure_groups
from mmhf.training.planned_stage import PlannedStage
from mmhf.training.stages import StagePlan, StagePosition, folded_groups
from mmhf.training.weights import (
    BestWeights,
    apply_freezing,
    check_gradients,
    check_ranks_agree,
    gradients_are_visible,
    is_sharded,
    share_buffers,
)

logger = logging.getLogger(__name__)


class StageFollower(Protocol):
    """What is told that a stage begins."""

    def begin_stage(self, position: StagePosition) -> None:
        """Do what the stage needs; the weights are those that it starts from, and frozen as it asks."""


class StageFeatures(Protocol):
    """What computes features of frozen parts once."""

    def enter(self, index: int) -> None:
        """Have the features at hand that a stage reads; its parts are frozen by now."""


class StageCallback(TrainerCallback):
    """Moves a Trainer through the stages of a plan; works with `transformers.Trainer` and `MMTrainer` alike.

    It alone knows which stage is under way, and tells those who need to know. At the first step of a stage it checks
    that all that newly trains received a gradient.

    Args:
        plan (`StagePlan`): The stages; its optimizer and scheduler must be the Trainer's.
        early_stopping (`PlateauSection`, *optional*): When to end the run before its time.
        unfreeze_on_plateau (`PlateauSection`, *optional*): When to go on to the next stage before its time, for
            stages that do not say.
        average ([`StageFollower`], *optional*): Averages the weights that train.
        features ([`StageFeatures`], *optional*): Stores features of what is frozen.
        data ([`StageFollower`], *optional*): Makes the stage's batches, and what synchronises its gradients.
        save_every (`int`, defaults to 1): With `save_strategy="epoch"`, epochs from one checkpoint to the next; there
            is one at the end in any case.
        evaluate_every (`int`, defaults to 1): With `eval_strategy="epoch"`, epochs from one evaluation to the next;
            there is one at the end of each stage in any case.

    Attributes:
        current (`StagePosition`): The stage under way, and where the run was when it began or was resumed; None
            before training.
        starts ([`StageFollower`], *optional*): Gives stages weights of their own to start from, out of the features.
    """

    def __init__(
        self,
        plan: StagePlan,
        early_stopping: PlateauSection | None = None,
        unfreeze_on_plateau: PlateauSection | None = None,
        *,
        average: StageFollower | None = None,
        features: StageFeatures | None = None,
        data: StageFollower | None = None,
        save_every: int = 1,
        evaluate_every: int = 1,
    ) -> None:
        self.plan = plan
        self.early_stopping = early_stopping
        self.unfreeze_on_plateau = unfreeze_on_plateau
        self.average = average
        self.features = features
        self.data = data
        self.save_every = save_every
        self.evaluate_every = evaluate_every
        self.current: StagePosition | None = None
        self.starts: StageFollower | None = None
        self._awaiting_gradients: tuple[str, ...] = ()

    def begin_due_stage(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Begin the stage that the next step belongs to, unless it is under way; gives whether one began.

        A run that is resumed after its last step gets its last stage back.
        """
        position = self.plan.locate(state.global_step)
        if position is None and self.current is None:
            position = self.plan.end()
        if position is None or (self.current is not None and position.index == self.current.index):
            return False
        self._begin_stage(args, position)
        return True

    def _begin_stage(self, args: TrainingArguments, position: StagePosition) -> None:
        """All that happens when a stage begins, in this order."""
        plan, stage = self.plan, position.stage
        if position.is_start and position.index > 0:
            finished = plan.stages[position.index - 1]
            if finished.section.carry_best is not None:
                torch.distributed.barrier() if args.world_size > 1 else None
                _best_weights(args, finished).load(plan.model)
                logger.info("Stage %s goes on from its best %s", finished.name, finished.section.carry_best)
        hold_batch_norm = stage.section.batch_norm == "frozen"
        apply_freezing(self._model, plan.partition, stage.curves, hold_batch_norm=hold_batch_norm)
        configure_groups(self._optimizer.param_groups, plan.optimizer_choices(position.index))
        self._scheduler.refresh()
        set_label_smoothing(plan.model, stage.section)
        share_buffers(plan.model, args)
        if self.features is not None:
            with beside_training():
                self.features.enter(position.index)
        if self.starts is not None:
            self.starts.begin_stage(position)
        if self.average is not None:
            self.average.begin_stage(position)
        check_ranks_agree(plan.model, args)
        if self.data is not None:
            self.data.begin_stage(position)
        before = plan.stages[position.index - 1].curves if position.index > 0 else {}
        newly_trained = [group for group in stage.curves if group not in before]
        self._awaiting_gradients = tuple(name for group in newly_trained for name in plan.partition[group])
        self.current = position
        logger.info(
            "Stage %s (%d of %d): %d steps, training %s",
            stage.name,
            position.index + 1,
            len(plan.stages),
            stage.num_steps,
            folded_groups(list(stage.curves)),
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_sharded():
            refuse_what_needs_whole_weights(self.plan)
        if self.starts is None and (probed := [each.name for each in self.plan.stages if each.section.start]):
            raise InputError(f"stage {probed[0]!r}: start: linear_probe is for what a recipe trains")
        self._model: nn.Module = unwrap_model(kwargs["model"])
        self._optimizer: torch.optim.Optimizer = kwargs["optimizer"]
        self._scheduler: StageScheduler = kwargs["lr_scheduler"]
        self.current = None
        self.begin_due_stage(args, state)
        if self.plan.is_over(state.global_step):
            control.should_training_stop = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin_due_stage(args, state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._awaiting_gradients and gradients_are_visible():
            check_gradients(self.plan.model, self._awaiting_gradients)
            self._awaiting_gradients = ()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.plan.is_over(state.global_step):
            control.should_training_stop = True
        self._log_before_saving(args, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_last = self.plan.is_over(state.global_step)
        if args.save_strategy == "epoch" and round(state.epoch or 0) % self.save_every and not is_last:
            control.should_save = False
        following = self.plan.locate(state.global_step)
        ends_stage = following is None or following.is_start
        if args.eval_strategy == "epoch" and round(state.epoch or 0) % self.evaluate_every and not ends_stage:
            control.should_evaluate = False
        self._log_before_saving(args, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.current is None or not metrics:
            return
        stage, began_at = self.current.stage, self.current.started_at
        if stage.section.carry_best is not None:
            key = metric_key(stage.section.carry_best, metrics, setting=f"stage {stage.name!r}: carry_best")
            scores = scores_since(state.log_history, key, began_at)
            if max(scores, key=lambda step: (scores[step], -step)) == state.global_step and args.should_save:
                _best_weights(args, stage).save(self.plan.model)
        if _has_stalled(self.early_stopping, "early_stopping.metric", state, metrics, since=0):
            logger.info("Step %d: %s stalled, the run ends", state.global_step, self.early_stopping.metric)  # type: ignore[union-attr]
            self.plan.end_run(state.global_step)  # so that a resumed run knows
            control.should_training_stop = True
            return
        patience = stage.section.unfreeze_on_plateau or self.unfreeze_on_plateau
        due = self.plan.locate(state.global_step)
        is_over = due is None or due.index != self.current.index  # what would be cut short is the next stage
        if _has_stalled(patience, "unfreeze_on_plateau.metric", state, metrics, since=began_at) and not is_over:
            logger.info("Step %d: %s stalled, stage %s ends", state.global_step, patience.metric, stage.name)  # type: ignore[union-attr]
            self.plan.end_stage(state.global_step)
            if self.plan.is_over(state.global_step):
                control.should_training_stop = True

    @staticmethod
    def _log_before_saving(args: TrainingArguments, control: TrainerControl) -> None:
        # The running loss is not part of a checkpoint: logging it first makes a resumed run log the same numbers.
        # Where the best model is kept, an evaluation may save, too.
        if control.should_save or (control.should_evaluate and args.load_best_model_at_end):
            control.should_log = True


@contextlib.contextmanager
def beside_training() -> Iterator[None]:
    """Around what is done with the model on the side: it runs uncompiled, as it will for others, and torch's random
    state is left as it was, so that no dropout mask changes."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        yield


def refuse_what_needs_whole_weights(plan: StagePlan) -> None:
    """Refuse a plan that cannot be trained where FSDP or DeepSpeed keep parts of the weights on each process.

    Raises:
        InputError: A stage carries its best weights over, the run has several kinds of optimizer, or weights have few
            bits.
    """
    whole = "needs whole weights on each process; FSDP and DeepSpeed keep parts"
    if few_bits := describe_quantized(plan.model):
        raise InputError(f"{few_bits}: quantization {whole}, remove it")
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
    losses = [module for module in model.modules() if isinstance(module, TargetLoss)]
    if section.label_smoothing is not None and not losses:
        raise InputError(f"stage {section.name!r}: label_smoothing is for classifiers, not for {type(model).__name__}")
    for loss in losses:
        own = model.config.label_smoothing
        loss.label_smoothing = own if section.label_smoothing is None else section.label_smoothing


def stalled(scores: Iterable[float], settings: PlateauSection) -> bool:
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


def metric_key(metric: str, metrics: Iterable[str], *, setting: str) -> str:
    """Trainer's name of a metric that a recipe names.

    Raises:
        InputError: It is not measured; the message lists what is.
    """
    key = f"eval_{metric.removeprefix('eval_')}"
    if key not in metrics:
        known = ", ".join(sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_")))
        raise InputError(f"{setting}: {metric!r} is not measured; choose {known}")
    return key


def scores_since(log_history: Sequence[dict[str, Any]], key: str, global_step: int) -> dict[int, float]:
    """Step → score (higher is better) of a metric, of the evaluations after a global step.

    They are read from the log history, so that a resumed run decides the same.
    """
    sign = 1.0 if greater_is_better(key) else -1.0
    return {entry["step"]: sign * entry[key] for entry in log_history if key in entry and entry["step"] > global_step}


def _has_stalled(
    settings: PlateauSection | None, setting: str, state: TrainerState, metrics: dict[str, float], *, since: int
) -> bool:
    if settings is None:
        return False
    key = metric_key(settings.metric, metrics, setting=setting)
    return stalled(scores_since(state.log_history, key, since).values(), settings)


def _best_weights(args: TrainingArguments, stage: PlannedStage) -> BestWeights:
    return BestWeights(Path(str(args.output_dir)) / "best_of_stage" / f"{stage.name}.safetensors")
