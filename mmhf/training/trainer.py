"""`transformers.Trainer` with stages, rates by group, exact data order and whole checkpoints."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from mmhf.conventions import TEACHER_ANSWERS
from mmhf.cpu import keep_freed_memory
from mmhf.errors import InputError
from mmhf.features.stage import StageFeatures
from mmhf.recipe.schema import RecipeBase
from mmhf.training.answers import Answers
from mmhf.training.boundary import StageCallback, beside_training, refuse_what_needs_whole_weights
from mmhf.training.checkpoints import (
    CheckpointEvents,
    checkpoint_path,
    failed_writes_as_os_errors,
    removed_if_unwritable,
    saved_under_own_names,
)
from mmhf.training.compiled import CompiledStage, Compiling, forget_compiled
from mmhf.training.devices import normalise_on_device
from mmhf.training.distillation import Imitation, Teaching
from mmhf.training.divergence import DivergenceGuard
from mmhf.training.ema import AverageWeights, WeightAverage
from mmhf.training.evaluator import ReadsSplits
from mmhf.training.frozen_copies import keep_copies, release_copies, why_no_copies
from mmhf.training.memory import shortage_named
from mmhf.training.optimizers import run_optimizer
from mmhf.training.parallel import ready_for_sharding, synchronise_what_trains
from mmhf.training.plan import ONE_ROW, one_row_refusal
from mmhf.training.progress import replace_progress
from mmhf.training.rates import named_rates
from mmhf.training.stage_data import StageData
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.weights import is_sharded, share_buffers


class MMTrainer(ReadsSplits):
    """Trains a model through the stages of a plan, in one run that can be stopped and resumed anywhere.

    Args:
        plan (`StagePlan`): The stages. `args.max_steps` must be `plan.num_steps`.
        recipe (`RecipeBase`, *optional*): Its sections `optimizer` (absent, that of `args`), `early_stopping`,
            `unfreeze_on_plateau`, `ema` and `checkpoints` hold.
        eval_collator (`Callable`, *optional*): Makes batches for evaluation and prediction, without augmentation;
            absent, `data_collator` makes these too.
        features ([`StageFeatures`], *optional*): Stores features of frozen parts; absent, they are always computed.
        teaching ([`Teaching`], *optional*): What a teacher's answers, which the batches have, count beside the labels;
            absent: there is no teacher.
        kwargs: As `transformers.Trainer` takes them.
    """

    stops_at_nan: ClassVar[bool] = True
    """Whether a loss or weights that are no numbers end the run."""

    def __init__(
        self,
        *,
        plan: StagePlan,
        recipe: RecipeBase | None = None,
        eval_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        features: StageFeatures | None = None,
        teaching: Teaching | None = None,
        **kwargs: Any,
    ) -> None:
        keep_freed_memory()
        self.plan = plan
        self.features = features
        self.teaching = teaching
        self._recipe = recipe
        self._guard = DivergenceGuard(self)
        self._answers = Answers(plan.model)
        self._imitation = Imitation.of(plan.model, teaching)
        self.eval_collator = eval_collator
        self._average = WeightAverage(plan, recipe.ema if recipe else None)
        self._trained: list[torch.nn.Parameter] = []
        self._loader: DataLoader[Any] | None = None
        # Trainer would show a loss that is no number as 0.0, and look at each on the way, which waits for the device
        # (docs/upstream/nan_loss_shown_as_zero.py).
        kwargs["args"].logging_nan_inf_filter = False
        self._rest_of_epoch: Iterator[Any] | None = None
        self._compiling = Compiling.asked_by(kwargs["args"])
        self._compiled: CompiledStage | None = None
        super().__init__(**kwargs)
        normalise_on_device(plan.model, self.args.device, self.data_collator, eval_collator)
        self.data = StageData(self.train_dataset, plan, self.args, recipe)
        self.stages = StageCallback(
            plan,
            recipe.early_stopping if recipe else None,
            recipe.unfreeze_on_plateau if recipe else None,
            average=self._average,
            features=features,
            data=self,
            save_every=recipe.checkpoints.every_epochs if recipe else 1,
            evaluate_every=recipe.evaluation.every_epochs if recipe else 1,
        )
        if features is not None:
            workers = self.args.dataloader_num_workers
            features.use(self.accelerator, num_workers=workers, with_bar=not self.args.disable_tqdm)
            features.attach(self.train_dataset, self.data_collator, is_training=True)
            features.attach(self.eval_dataset, eval_collator or self.data_collator, is_training=False)
        self._checkpoints = CheckpointEvents(self, self._average)
        for callback in (self.stages, AverageWeights(self._average), self._checkpoints):
            self.add_callback(callback)
        replace_progress(self, self.stages)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a micro-batch as `transformers.Trainer` does, and keep its loss.

        Raises:
            InputError: It is one row, which batch norm cannot normalise.
        """
        replays_graphs = self._compiling is not None and self._compiling.replays_graphs
        if replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with self.short_attention():
                loss = super().training_step(*args, **kwargs)
        except ValueError as error:
            if ONE_ROW not in str(error) or self.stages.current is None:
                raise
            raise InputError(one_row_refusal(self.stages.current.stage.name)) from error
        if replays_graphs:
            loss = loss.clone()  # the next step writes into the same memory
        self._guard.watch.add(loss)
        return loss

    def check_weights(self) -> None:
        """Raise `InputError` where the model's weights are no numbers, so that no checkpoint keeps them."""
        self._guard.check_weights()

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(str(self.args.output_dir))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `transformers.Trainer` does.

        Raises:
            OSError: A checkpoint cannot be written; nothing is left of it.
            InputError: Memory has run out; it says which key to change.
        """
        if resume_from_checkpoint is True:
            resumed: str | None = get_last_checkpoint(str(self.run_dir))
        else:
            resumed = resume_from_checkpoint or None
        checkpoint = None if resumed is None else Path(resumed)
        self._average.go_on_from(checkpoint)
        self.data.go_on_from(checkpoint)
        unwritable = removed_if_unwritable(lambda: checkpoint_path(self.run_dir, self.state.global_step))
        shortage = shortage_named(lambda: self.data.explain_shortage(self.stages.current))
        try:
            with self._checkpoints.kept_until_replaced(), unwritable, shortage:
                output = super().train(resumed, *args, **kwargs)
        finally:
            release_copies(self.plan.model)
            if self._compiled is not None:
                forget_compiled(self.plan.model)
        self.check_weights()
        return output

    def begin_stage(self, position: StagePosition) -> None:
        """Make the batches of a stage that begins, and note what it trains."""
        self._trained = [parameter for parameter in self.plan.model.parameters() if parameter.requires_grad]
        self.data.begin_stage(position)
        self._train_batch_size = self.data.batch_size
        self._loader = None
        self._guard.watch.forget()
        synchronise_what_trains(self.model_wrapped, self.accelerator.ddp_handler, self.args)
        precision = str(self.accelerator.mixed_precision)
        if not is_sharded() and why_no_copies(self.args.device, precision) is None:
            keep_copies(self.plan.model, precision)
        if self._compiling is not None:
            self._compiled = CompiledStage(self.plan.model, self._compiling, precision, position.stage.name)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss as `transformers.Trainer` computes it, and in training that of a teacher's answers beside it; a
        classifier's right answers are counted for the log."""
        compute: Callable[..., Any] = super().compute_loss
        taught = inputs.pop(TEACHER_ANSWERS, None)
        compiled = self._compiled if model.training else None
        if compiled is not None:
            plain = functools.partial(compute, self.plan.model, dict(inputs), False, num_items_in_batch)
            compiled.expect(plain)
        labels = inputs.get("labels")
        loss, outputs = compute(model, inputs, True, num_items_in_batch)
        if compiled is not None:
            compiled.compare(loss)
        if model.training and self._answers and labels is not None:
            self._answers.add(outputs["logits"], labels)
            if self._imitation is not None:
                loss = self._imitation.beside(loss, outputs["logits"], taught, labels)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build one optimizer over all groups; what is frozen gets no gradient and is passed over by it."""
        for parameter in self.plan.model.parameters():  # what wraps it next expects something that trains
            parameter.requires_grad_(parameter.is_floating_point())
        if is_sharded():
            ready_for_sharding(self.plan.model)
            refuse_what_needs_whole_weights(self.plan)
        if self.optimizer is None:
            section = self._recipe.optimizer if self._recipe else None
            choice = run_optimizer(section, self, self.plan.model)
            self.optimizer = self.plan.create_optimizer(
                choice.optimizer_class, weight_decay=choice.weight_decay, **choice.options
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = self.lr_scheduler
        if scheduler is None:
            scheduler = self.plan.create_scheduler(self.create_optimizer() if optimizer is None else optimizer)
            self.lr_scheduler = scheduler  # type: ignore[assignment]  # transformers names one class of many
            self._created_lr_scheduler = True
        return scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the stage under way."""
        if not self.data.is_seekable:
            return super().get_train_dataloader()
        prepared: DataLoader[Any] = self.accelerator.prepare(self.data.loader(self.data_collator))
        return prepared

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        epochs, *rest = super().set_initial_training_values(args, dataloader)
        epochs = self.plan.num_epochs if self.plan.has_own_batches else epochs
        if self.data.resumed is not None:
            # The plan ends the run; what was trained under another batch may make it more epochs than its steps say.
            epochs += self.data.resumed.epoch + 1
        return (epochs, *rest)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, _ = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        return self.data.resume(checkpoint, epochs, self.state.global_step, num_update_steps_per_epoch)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_training_stop:
            return
        self.data.epoch = kwargs["epoch"]
        self.stages.begin_due_stage(self.args, self.state)
        self.data.begin_epoch()
        self._rest_of_epoch = None
        if self.data.is_seekable or self.plan.has_own_batches:
            loader = self._seek()
            steps = len(loader)
            kwargs["train_dataloader"] = self.callback_handler.train_dataloader = loader
            kwargs["steps_in_epoch"] = steps
            kwargs["num_update_steps_per_epoch"] = math.ceil(steps / self.args.gradient_accumulation_steps)
        self.data.steps_in_epoch = kwargs["steps_in_epoch"]
        super()._run_epoch(*args, **kwargs)

    def _seek(self) -> DataLoader[Any]:
        """The stage's data loader, at the sample of the epoch that comes next."""
        if self._loader is None:
            self._loader = self.get_train_dataloader()
        self.data.seek()
        return self._loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Take the micro-batches of one step; a stage that begins within an epoch begins before they are read."""
        if self.stages.begin_due_stage(self.args, self.state) and self.data.is_seekable:
            loader = self._seek()
            loader.set_epoch(self.data.epoch)  # type: ignore[attr-defined]  # of accelerate
            self._rest_of_epoch = iter(loader)
        source = self._on_the_way(self._rest_of_epoch or epoch_iterator)
        batches, count = super().get_batch_samples(source, num_batches, device)
        self._guard.watch.begin_step(self.data.take(len(batches), self.state.global_step + 1))
        if self._imitation is not None:
            self._imitation.begin_step(batches, lambda count: self.accelerator.reduce(count.to(device)))
        own = self._answers.measure(batches)
        if own is None:
            return batches, count
        own = own.to(device)
        return batches, self.accelerator.gather(own).sum() if self.args.world_size > 1 else own

    def _on_the_way(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The micro-batches of a step as they arrive, for trainers that do something before all are there."""
        return batches

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        if is_sharded():
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does, with the averaged weights where the recipe asks for `ema`."""
        with self._average.in_model(), beside_training():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict with the same model on all processes.

        Raises:
            InputError: Memory has run out; it says which key to change.
        """
        share_buffers(self.plan.model, self.args)
        if self.features is not None:
            self.features.check()
        size = self.args.per_device_eval_batch_size
        what = f"evaluation: memory ran out in batches of {size}; lower training.per_device_eval_batch_size"
        with shortage_named(lambda: what):
            return super().evaluation_loop(*args, **kwargs)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        own: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        own.pop("dynamo_plugin", None)  # by which accelerate compiles the model whole
        return own

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with each group's learning rate as `lr/GROUP`, and the stage in the run's own history."""
        if "loss" in logs:
            self._guard.check_losses(logs["loss"])
            if self._answers:
                logs[self._answers.name] = self._answers.take(
                    lambda counts: self.accelerator.reduce(counts.to(self.args.device))
                )
            rates = self.plan.learning_rates(self.state.global_step - 1)
            logs["learning_rate"] = max(rates.values())  # Trainer gives the first group's
            logs.update({f"lr/{name}": rate for name, rate in named_rates(rates).items()})
        super().log(logs, start_time)
        if self.stages.current is not None:
            entry: dict[str, Any] = self.state.log_history[-1]
            entry["stage"] = self.stages.current.stage.name

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, configuration and processor; a checkpoint under the names that Trainer reads it back by.

        Raises:
            OSError: A file cannot be written.
        """
        folder = Path(output_dir or self.run_dir)
        with failed_writes_as_os_errors(folder), saved_under_own_names(self.plan.model, folder != self.run_dir):
            super().save_model(output_dir, _internal_call)
        # A pickle of arguments that recipe.yaml states in full; a run folder holds nothing that must be unpickled.
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
