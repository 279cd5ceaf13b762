"""`transformers.Trainer` with stages, rates by group, exact data order and whole checkpoints."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import is_compiled_module
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, rotate_checkpoints

from mmhf.conventions import IGNORED_LABEL
from mmhf.cpu import keep_freed_memory
from mmhf.damage import mark_complete
from mmhf.data.datasets import RowDataset
from mmhf.data.streams.captions import CaptionStream
from mmhf.errors import InputError
from mmhf.features.stage import StageFeatures
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.training_sections import StageSection
from mmhf.training.arguments import accumulation_steps
from mmhf.training.boundary import StageCallback, random_state_kept, refuse_what_needs_whole_weights
from mmhf.training.checkpoints import (
    checkpoint_path,
    complete_checkpoints,
    failed_writes_as_os_errors,
    is_finite,
    removed_if_unwritable,
    saved_under_own_names,
)
from mmhf.training.compiled import CUDA_GRAPH_MODES, CompiledStage
from mmhf.training.ema import AverageWeights, WeightAverage
from mmhf.training.evaluator import JoinsOnce
from mmhf.training.frozen_copies import keep_copies, release_copies, why_no_copies
from mmhf.training.loss_watch import LossWatch, StepSamples
from mmhf.training.memory import shortage_named
from mmhf.training.optimizers import OptimizerChoice, optimizer_choice
from mmhf.training.parallel import find_data_parallel, ready_for_sharding, synchronise_what_trains
from mmhf.training.plan import ONE_ROW, one_row_refusal
from mmhf.training.position import RunPosition, run_conditions
from mmhf.training.progress import NotebookProgress, RatesByName, StageLogLines, StageProgressBar, is_notebook
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.weights import is_sharded, share_buffers

logger = logging.getLogger(__name__)

_SHOWN_IDS = 8


class PrivateHook(NamedTuple):
    """A private method of `transformers.Trainer` that mmhf overrides."""

    parameters: tuple[str, ...]
    """As of transformers 5.24."""
    reason: str
    retired_by: str


PRIVATE_HOOKS: Mapping[str, PrivateHook] = {
    "_init_training_state": PrivateHook(
        ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
        "a resumed run goes on at an epoch and a sample, among epochs that may have unlike numbers of steps",
        "a Trainer that asks a public method where to go on",
    ),
    "_run_epoch": PrivateHook(
        (
            "model",
            "epoch",
            "train_dataloader",
            "steps_in_epoch",
            "num_update_steps_per_epoch",
            "trial",
            "ignore_keys_for_eval",
            "start_time",
            "resume_from_checkpoint",
            "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
        "each stage has its own data loader; a run that is resumed after its end takes no further step",
        "a Trainer that asks for a data loader in each epoch and heeds `should_training_stop` of `on_train_begin` "
        "(docs/upstream/one_step_too_many.py)",
    ),
    "_clip_grad_norm": PrivateHook(
        ("model",),
        "Trainer goes through all modules, frozen ones included, three times a step: most of one without an encoder",
        "a Trainer that clips the parameters that have gradients",
    ),
    "_issue_warnings_after_load": PrivateHook(
        ("load_result",),
        "a captioner's checkpoint leaves frozen backbones out, and what is tied, which is no reason for a warning",
        "a Trainer that knows tied weights and `_keys_to_ignore_on_save` together",
    ),
}
"""All that is overridden of Trainer's private methods; a test compares it with the code and with Trainer."""

PRIVATE_ATTRIBUTES = ("_train_batch_size", "_created_lr_scheduler", "_globalstep_last_logged")
"""What is read or set of Trainer's private attributes."""


class MMTrainer(JoinsOnce):
    """Trains a model through the stages of a plan, in one run that can be stopped and resumed anywhere.

    Args:
        plan (`StagePlan`): The stages. `args.max_steps` must be `plan.num_steps`.
        recipe (`RecipeBase`, *optional*): Its sections `optimizer` (absent, that of `args`), `early_stopping`,
            `unfreeze_on_plateau`, `ema` and `checkpoints` hold.
        eval_collator (`Callable`, *optional*): Makes batches for evaluation and prediction, without augmentation;
            absent, `data_collator` makes these too.
        features ([`StageFeatures`], *optional*): Stores features of frozen parts; absent, they are always computed.
        kwargs: As `transformers.Trainer` takes them.
    """

    def __init__(
        self,
        *,
        plan: StagePlan,
        recipe: RecipeBase | None = None,
        eval_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        features: StageFeatures | None = None,
        **kwargs: Any,
    ) -> None:
        keep_freed_memory()
        self.plan = plan
        self.features = features
        self._recipe = recipe
        self._watch = LossWatch()
        self._answers = torch.zeros(2, dtype=torch.long)
        self._eval_collator = eval_collator
        self._average = WeightAverage(plan, recipe.ema if recipe else None)
        self._trained: list[torch.nn.Parameter] = []
        self._loader: DataLoader[Any] | None = None
        self._epoch = self._steps_in_epoch = self._resume_at = self._epoch_start = self._num_taken = 0
        self._save_total_limit: int | None = None
        self._position: RunPosition | None = None
        # Trainer would show a loss that is no number as 0.0, and look at each on the way, which waits for the device
        # (docs/upstream/nan_loss_shown_as_zero.py).
        kwargs["args"].logging_nan_inf_filter = False
        self._rest_of_epoch: Iterator[Any] | None = None
        self._compiled: CompiledStage | None = None
        super().__init__(**kwargs)
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
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)
        show: Callable[[StageCallback, RatesByName], TrainerCallback]
        show = StageLogLines if self.args.disable_tqdm else StageProgressBar
        if is_notebook():
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
            show = NotebookProgress
        for callback in (
            self.stages,
            AverageWeights(self._average),
            _RunEvents(self),
            show(self.stages, self._rates_by_name),
        ):
            self.add_callback(callback)

    stops_at_nan: ClassVar[bool] = True
    """Whether a loss or weights that are no numbers end the run."""

    def explain_divergence(self, what: str, *, step: int | None = None) -> str:
        """Say where a run came to numbers that are none, and how to go on.

        Args:
            what (`str`): What is no number.
            step (`int`, *optional*): The step where it was found; absent: the first whose loss was no number, else
                some step since the last log line.
        """
        broken = None if step else self._watch.look(self._gathered).broken
        rows = "" if broken is None else f" ({self._rows_of(broken)})"
        last = step or (self.state.global_step if broken is None else broken.step)
        first = last if step or broken else self._globalstep_last_logged + 1
        steps = f"step {last}" if first >= last else f"steps {first} to {last}"
        stage = f", stage {self.stages.current.stage.name}" if self.stages.current else ""
        good = next((path for path in complete_checkpoints(self.run_dir) if is_finite(path)), None)
        return (
            f"{steps}{stage}: {what}{rows}; last good checkpoint: {good or 'none yet'}; go on from it with a lower "
            "training.learning_rate, a longer warmup, training.max_grad_norm or in full precision"
        )

    def _rows_of(self, samples: StepSamples) -> str:
        """The rows of a step in words."""
        rows = self.train_dataset
        if isinstance(rows, CaptionStream) or not isinstance(rows, RowDataset) or rows.order is None:
            return "rows unknown, the data is a stream"
        ids = rows.ids(rows.order.epoch_rows(samples.epoch)[0][samples.first : samples.last])
        return f"rows {', '.join(ids[:_SHOWN_IDS])}{', ...' if len(ids) > _SHOWN_IDS else ''}"

    def _gathered(self, losses: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.accelerator.gather(losses)
        return gathered.reshape(self.args.world_size, -1)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a micro-batch as `transformers.Trainer` does, and keep its loss.

        Raises:
            InputError: It is one row, which batch norm cannot normalise.
        """
        replays_graphs = self._compiled is not None and self.args.torch_compile_mode in CUDA_GRAPH_MODES
        if replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            loss = super().training_step(*args, **kwargs)
        except ValueError as error:
            if ONE_ROW not in str(error) or self.stages.current is None:
                raise
            raise InputError(one_row_refusal(self.stages.current.stage.name)) from error
        if replays_graphs:
            loss = loss.clone()  # the next step writes into the same memory
        self._watch.add(loss)
        return loss

    def _check_weights(self) -> None:
        """Raise `InputError` where the model's weights are no numbers, so that no checkpoint keeps them."""
        if not self.stops_at_nan or is_sharded():
            return
        tensors = [each for each in self.plan.model.state_dict().values() if each.is_floating_point()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise InputError(self.explain_divergence("the weights are no numbers any more"))

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
        self._position = None if checkpoint is None else self._place(checkpoint)
        # Trainer deletes old checkpoints before the new one is whole, and, with a limit of 1, all but the best when
        # training ends: a run that is stopped while its splits are evaluated would go back to that one.
        self._save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            unwritable = removed_if_unwritable(lambda: checkpoint_path(self.run_dir, self.state.global_step))
            with unwritable, shortage_named(self._explain_shortage):
                output = super().train(resumed, *args, **kwargs)
        finally:
            self.args.save_total_limit = self._save_total_limit
            release_copies(self.plan.model)
        self._check_weights()
        return output

    def _explain_shortage(self) -> str:
        """Which key to change where the memory of a step has run out."""
        size, position = self._train_batch_size, self.stages.current
        key, stage = "training.per_device_train_batch_size", ""
        if position is not None:
            stage = f"stage {position.stage.name}: "
            key = f"stages.{position.index}.batch_size" if position.stage.section.batch_size else key
        begun = f"{stage}memory ran out on the {self.args.device.type} device, in batches of {size}"
        if size == 1:
            return f"{begun}; set training.gradient_checkpointing: true, or a smaller data.image_size"
        is_exact = self._recipe is not None and self._recipe.pairs_per_step() is not None
        same = "contrastive.batch_size stays" if is_exact else "and raise training.gradient_accumulation_steps as much"
        return f"{begun}; lower {key} to {size // 2} ({same}), and go on from the last checkpoint with --allow-changes"

    def _place(self, checkpoint: Path) -> RunPosition | None:
        """Let the plan go on where a checkpoint was written, in samples; None where it does not say."""
        position = RunPosition.load(checkpoint)
        if position is None or not self._is_seekable:
            return None
        index = len(position.starts) - 1
        stage = self.plan.stages[index]
        position.check_data(self._num_samples, self._order(stage.section))
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        early_ends = dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True)["early_ends"])
        left = position.steps_left(
            epochs=stage.section.epochs,
            num_steps=stage.num_steps,
            step_samples=self._step_samples(stage.section),
            cut_short=early_ends.get(index, state.global_step) > state.global_step,
            drop_last=self.args.dataloader_drop_last,
        )
        left = 0 if early_ends.get(index) == state.global_step else max(left, 0)
        if self.plan.place(state.global_step, position.starts, left, early_ends):
            self.args.max_steps = self.plan.last_step
        return position

    @property
    def is_epoch_over(self) -> bool:
        """Whether the present epoch's last micro-batch has been taken."""
        return self._num_taken >= self._steps_in_epoch

    @property
    def _num_samples(self) -> int:
        assert isinstance(self.train_dataset, RowDataset)
        return len(self.train_dataset)

    def _step_samples(self, section: StageSection) -> int:
        """Samples of a stage's step, over all micro-batches and processes."""
        size, accumulation = self._batch_shape(section)
        samples: int = size * accumulation * self.args.world_size
        return samples

    def _order(self, section: StageSection) -> str:
        """What the order of samples depends on beside seed and epoch."""
        if self.args.train_sampling_strategy == "group_by_length":
            return f"length, in steps of {self._step_samples(section)} samples"
        if not isinstance(self.train_dataset, CaptionStream):
            return "table"
        readers = self.args.world_size * max(self.args.dataloader_num_workers, 1)
        return f"{readers} readers in batches of {self.args.train_batch_size}"

    def _present_position(self) -> RunPosition:
        """Where the run is, after a step."""
        position = self.plan.locate(self.state.global_step) or self.plan.end()
        starts = [start for start, _ in self.plan.spans()][: position.index + 1]
        return RunPosition(
            starts=starts,
            stage_step=position.step,
            epoch=self._epoch + self.is_epoch_over,
            samples=0 if self.is_epoch_over else self._samples_taken,
            num_samples=self._num_samples,
            step_samples=self._step_samples(position.stage.section),
            order=self._order(position.stage.section),
            conditions=run_conditions(self.args),
        )

    def begin_stage(self, position: StagePosition) -> None:
        """Make the batches of a stage that begins, and note what it trains."""
        section = position.stage.section
        self._trained = [parameter for parameter in self.plan.model.parameters() if parameter.requires_grad]
        self._train_batch_size, self.args.gradient_accumulation_steps = self._batch_shape(section)
        if isinstance(self.train_dataset, RowDataset):
            self.train_dataset.stage = position.index
        self._loader = None
        self._watch.forget()
        if (parallel := find_data_parallel(self.model_wrapped)) is not None:
            synchronise_what_trains(
                parallel,
                self.accelerator.ddp_handler,
                find_unused=self.args.ddp_find_unused_parameters,
                accumulates=self.args.gradient_accumulation_steps > 1,
            )
        precision = str(self.accelerator.mixed_precision)
        self._compiled = None
        if is_compiled_module(self.model_wrapped):
            self._compiled = CompiledStage(precision, position.stage.name)
        elif not is_sharded() and why_no_copies(self.args.device, precision) is None:
            keep_copies(self.plan.model, precision)

    def _batch_shape(self, section: StageSection) -> tuple[int, int]:
        """Samples of a stage's micro-batch in each process, and how many of these make a step."""
        size = section.batch_size or self.args.train_batch_size
        if self._recipe is None:
            return size, self.args.gradient_accumulation_steps
        return size, accumulation_steps(self._recipe, self.args, section.batch_size)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss as `transformers.Trainer` computes it; a classifier's right answers are counted for the log."""
        if self._compiled is not None and model.training:
            compute: Callable[..., Any] = super().compute_loss
            plain = functools.partial(compute, self.plan.model, dict(inputs), False, num_items_in_batch)
            self._compiled.expect(self.plan.model, plain)
        loss = self._loss(model, inputs, return_outputs, num_items_in_batch)
        if self._compiled is not None and model.training:
            self._compiled.compare(loss[0] if return_outputs else loss)
        return loss

    def _loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> Any:
        if not (model.training and self._losses and "labels" in inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        classes = labels if labels.ndim == 1 else labels.argmax(dim=1)  # mixed labels: the larger part
        counts = classes != IGNORED_LABEL
        right = (outputs["logits"].detach().argmax(dim=1) == classes) & counts
        self._answers = self._answers.to(right.device) + torch.stack([right.sum(), counts.sum()])
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build one optimizer over all groups; what is frozen gets no gradient and is passed over by it."""
        self.plan.model.requires_grad_(True)  # what wraps it next expects something that trains
        if is_sharded():
            ready_for_sharding(self.plan.model)
        if self.optimizer is None:
            if is_sharded():
                refuse_what_needs_whole_weights(self.plan)
            section = self._recipe.optimizer if self._recipe else None
            if section is None:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.plan.model)
                choice = OptimizerChoice(optimizer_class, options, self.args.weight_decay)
            else:
                choice = optimizer_choice(section, weight_decay=self.args.weight_decay)
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
        args, dataset = self.args, self.train_dataset
        if not self._is_seekable:
            return super().get_train_dataloader()
        assert isinstance(dataset, RowDataset)
        if isinstance(dataset, CaptionStream):
            dataset.lay_out(self._train_batch_size, args.world_size * max(args.dataloader_num_workers, 1))
        sampler = dataset.epoch_sampler(args.seed if args.data_seed is None else args.data_seed)
        if args.train_sampling_strategy == "group_by_length":
            step = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
            sampler.group_by_length(dataset.lengths, step)
        loader = DataLoader(
            dataset,
            batch_size=self._train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            # An iterator draws its workers' seeds: from the global generator, dropout masks would depend on when.
            generator=torch.Generator().manual_seed(args.seed + args.process_index),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    @property
    def _is_seekable(self) -> bool:
        """Whether an epoch can begin at any of its samples, without reading those before."""
        strategy = self.args.train_sampling_strategy
        return isinstance(self.train_dataset, RowDataset) and strategy in ("random", "group_by_length")

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """The batches of a split that is evaluated, without augmentation."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._evaluated(super().get_eval_dataloader, dataset, eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """The batches of a split that is predicted, without augmentation."""
        return self._evaluated(super().get_test_dataloader, test_dataset, test_dataset)

    def _evaluated(self, make: Callable[[Any], DataLoader[Any]], dataset: Any, given: Any) -> DataLoader[Any]:
        collator = self.data_collator
        self.data_collator = self._eval_collator or collator
        persistent = self.args.dataloader_persistent_workers
        if self.features is not None:
            self.features.attach(dataset, self.data_collator, is_training=False)
            self.features.check()
            self.args.dataloader_persistent_workers = (
                False  # workers of one stage would not see the next one's columns
            )
        try:
            return make(given)
        finally:
            self.data_collator, self.args.dataloader_persistent_workers = collator, persistent

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        epochs, *rest = super().set_initial_training_values(args, dataloader)
        epochs = self.plan.num_epochs if self.plan.has_own_batches else epochs
        if self._position is not None:
            # The plan ends the run; what was trained under another batch may make it more epochs than its steps say.
            epochs += self._position.epoch + 1
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
        self._resume_at = 0
        if resume_from_checkpoint is None:
            return epochs, 0
        if self._position is not None:
            self._resume_at = 0 if self.args.ignore_data_skip else self._position.samples
            return self._position.epoch, 0
        # The scheduler's state is loaded later, but where an epoch begins depends on the stages that ended early.
        state = torch.load(Path(resume_from_checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.plan.early_ends = dict(state["early_ends"])
        steps = self.state.global_step % num_update_steps_per_epoch
        if self.plan.has_own_batches:
            epochs, steps = self.plan.epoch_of(self.state.global_step)
        if self.args.ignore_data_skip:
            return epochs, 0
        position = self.plan.locate(self.state.global_step) or self.plan.end()
        size, accumulation = self._batch_shape(position.stage.section)
        if not self._is_seekable:
            return epochs, steps * accumulation
        self._resume_at = steps * accumulation * size * self.args.world_size
        return epochs, 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_training_stop:
            return
        self._epoch = kwargs["epoch"]
        self.stages.begin_due_stage(self.args, self.state)
        self._epoch_start, self._resume_at = self._resume_at, 0
        self._num_taken = 0
        self._rest_of_epoch = None
        if self._is_seekable or self.plan.has_own_batches:
            loader = self._seek()
            steps = len(loader)
            kwargs["train_dataloader"] = self.callback_handler.train_dataloader = loader
            kwargs["steps_in_epoch"] = steps
            kwargs["num_update_steps_per_epoch"] = math.ceil(steps / self.args.gradient_accumulation_steps)
        self._steps_in_epoch = kwargs["steps_in_epoch"]
        super()._run_epoch(*args, **kwargs)

    def _seek(self) -> DataLoader[Any]:
        """The stage's data loader, at the sample of the epoch that comes next."""
        if self._loader is None:
            self._loader = self.get_train_dataloader()
        if self._is_seekable:
            assert isinstance(self.train_dataset, RowDataset)
            self.train_dataset.start_epoch(self._epoch, at=self._samples_taken)
        return self._loader

    @property
    def _samples_taken(self) -> int:
        """Samples of the present epoch that all processes together have been given."""
        samples: int = self._epoch_start + self._num_taken * self._train_batch_size * self.args.world_size
        return samples

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Take the micro-batches of one step; a stage that begins within an epoch begins before they are read."""
        if self.stages.begin_due_stage(self.args, self.state) and self._is_seekable:
            loader = self._seek()
            loader.set_epoch(self._epoch)  # type: ignore[attr-defined]  # of accelerate
            self._rest_of_epoch = iter(loader)
        source = self._on_the_way(self._rest_of_epoch or epoch_iterator)
        batches, count = super().get_batch_samples(source, num_batches, device)
        first = self._samples_taken
        self._num_taken += len(batches)
        self._watch.begin_step(StepSamples(self.state.global_step + 1, self._epoch, first, self._samples_taken))
        # Trainer counts labels; a loss with class weights or soft labels has its own measure of a batch.
        if len(self._losses) != 1 or not batches or "labels" not in batches[0]:
            return batches, count
        weight_device = self.plan.model.device
        own = torch.stack([self._losses[0].count(batch["labels"].to(weight_device)) for batch in batches]).sum()
        own = own.to(device)
        return batches, self.accelerator.gather(own).sum() if self.args.world_size > 1 else own

    def _on_the_way(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The micro-batches of a step as they arrive, for trainers that do something before all are there."""
        return batches

    @functools.cached_property
    def _losses(self) -> list[ClassificationLoss]:
        return [module for module in self.plan.model.modules() if isinstance(module, ClassificationLoss)]

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        if is_sharded():
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does, with the averaged weights where the recipe asks for `ema`."""
        with self._average.in_model(), random_state_kept():
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

    def _rates_by_name(self, global_step: int) -> dict[str, float]:
        """Learning rate of what trains after a step: by prefix where its groups share one, otherwise by group."""
        rates = {name: rate for name, rate in self.plan.learning_rates(global_step).items() if rate > 0}
        by_prefix: dict[str, set[float]] = {}
        for name, rate in rates.items():
            by_prefix.setdefault(name.split(".")[0], set()).add(rate)
        return {
            (name.split(".")[0] if len(by_prefix[name.split(".")[0]]) == 1 else name): rate
            for name, rate in rates.items()
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with each group's learning rate as `lr/GROUP`, and the stage in the run's own history."""
        if "loss" in logs:
            if self.stops_at_nan and not math.isfinite(logs["loss"]):
                raise InputError(self.explain_divergence(f"the loss is {logs['loss']}"))
            spike = self._watch.look(self._gathered).spike
            if spike is not None and self.stops_at_nan and self.stages.current and self.is_world_process_zero():
                logger.warning(
                    "Step %d, stage %s: the loss jumped to %.4g, from %.4g as is usual; %s",
                    *(spike.samples.step, self.stages.current.stage.name, spike.loss, spike.median),
                    self._rows_of(spike.samples),
                )
            if self._losses:
                right, answered = self.accelerator.reduce(self._answers.to(self.args.device)).tolist()
                logs["accuracy"] = right / max(answered, 1)
                self._answers = torch.zeros_like(self._answers)
            done = self.state.global_step - 1
            logs["learning_rate"] = max(self.plan.learning_rates(done).values())  # Trainer gives the first group's
            logs.update({f"lr/{name}": rate for name, rate in self._rates_by_name(done).items()})
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

    def finish_checkpoint(self) -> None:
        """Add to a checkpoint what Trainer does not know of, say that it is whole, and delete older ones."""
        self._check_weights()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint = checkpoint_path(self.run_dir, self.state.global_step)
            self._average.save(checkpoint)
            if self._is_seekable:
                self._present_position().save(checkpoint)
            mark_complete(checkpoint)
            rotate_checkpoints(
                output_dir=str(self.run_dir),
                save_total_limit=self._save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )

    def count_epochs(self) -> None:
        """Put right how many passes over the data are done: Trainer counts from where an epoch was resumed."""
        before = self._epoch_start / (self._train_batch_size * self.args.world_size)
        if before > 0:
            self.state.epoch = self._epoch + (before + self._num_taken) / (before + self._steps_in_epoch)


class _RunEvents(TrainerCallback):
    """What an `MMTrainer` does at Trainer's own events."""

    def __init__(self, trainer: MMTrainer) -> None:
        self.trainer = trainer
        self._is_save_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put off the checkpoint of an epoch's last step until the epoch was evaluated.

        A run that is stopped in that evaluation goes on before it; from a checkpoint it would begin the next epoch.
        """
        self.trainer.count_epochs()
        is_last = self.trainer.is_epoch_over or control.should_training_stop
        if control.should_save and is_last and "epoch" in (args.eval_strategy, args.logging_strategy):
            control.should_save, self._is_save_due = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = control.should_save or self._is_save_due

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save what is best so far, also between two epochs that `checkpoints.every_epochs` saves."""
        if not (self.trainer.is_in_train and args.load_best_model_at_end and args.metric_for_best_model):
            return
        value = (metrics or {}).get(f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
        best, sign = state.best_metric, 1.0 if args.greater_is_better else -1.0
        if value is not None and sign * value > (-math.inf if best is None else sign * best):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._is_save_due = False
        self.trainer.finish_checkpoint()
