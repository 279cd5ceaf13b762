"""The training rows as the stage under way reads them: batch size, order, loader, and how far an epoch has come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from mmhf.data.datasets import RowDataset
from mmhf.data.samplers import EpochSampler
from mmhf.data.streams.captions import CaptionStream
from mmhf.recipe.schema import RecipeBase
from mmhf.recipe.training_sections import StageSection
from mmhf.training.arguments import accumulation_steps
from mmhf.training.loss_watch import StepSamples
from mmhf.training.position import RunPosition, run_conditions
from mmhf.training.stages import StagePlan, StagePosition

_SHOWN_IDS = 8


class Arrangement(Protocol):
    """Puts the samples of an epoch in order."""

    name: str
    """What the order depends on, beside seed and epoch."""

    def load(self, checkpoint: Path | None) -> None:
        """Go on as a checkpoint says; None begins a run."""

    def save(self, checkpoint: Path) -> None:
        """Write the order of the epoch under way into a checkpoint folder."""

    def arrange(self, sampler: EpochSampler, *, epoch: int, taken: int, stage: int, step_samples: int) -> None:
        """Put what is left of an epoch in order, when it or a stage begins."""


class StageData:
    """The training rows of a run, and where the run is in them.

    Args:
        rows (`Dataset`): What the run trains on.
        plan (`StagePlan`): Its stages.
        args (`TrainingArguments`): Its arguments; `gradient_accumulation_steps` is set for each stage.
        recipe (`RecipeBase`, *optional*): Its recipe, which may ask for a number of pairs in each step.

    Attributes:
        batch_size (`int`): Samples of a micro-batch of the stage under way, in each process.
        epoch (`int`): The present epoch.
        steps_in_epoch (`int`): Its micro-batches, from where it was begun.
        resumed (`RunPosition`, *optional*): Where the run that is resumed was, if its checkpoint says.
        arrangement ([`Arrangement`], *optional*): What puts samples into another order than the sampler's own.
    """

    def __init__(
        self, rows: Dataset[Any] | None, plan: StagePlan, args: TrainingArguments, recipe: RecipeBase | None
    ) -> None:
        self.rows = rows
        self.plan = plan
        self.args = args
        self.batch_size = args.train_batch_size
        self.epoch = self.steps_in_epoch = 0
        self.resumed: RunPosition | None = None
        self.arrangement: Arrangement | None = None
        self._recipe = recipe
        self._stage = 0
        self._resume_at = self._epoch_start = self._num_taken = 0

    @property
    def is_seekable(self) -> bool:
        """Whether an epoch can begin at any of its samples, without reading those before."""
        strategy = self.args.train_sampling_strategy
        return isinstance(self.rows, RowDataset) and strategy in ("random", "group_by_length")

    @property
    def is_epoch_over(self) -> bool:
        """Whether the present epoch's last micro-batch has been taken."""
        return self._num_taken >= self.steps_in_epoch

    @property
    def samples_taken(self) -> int:
        """Samples of the present epoch that all processes together have been given."""
        samples: int = self._epoch_start + self._num_taken * self.batch_size * self.args.world_size
        return samples

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Let the plan go on where a checkpoint was written, in samples; None begins a run.

        Raises:
            InputError: The rows are others than the checkpoint's, or lie in another order.
        """
        self.batch_size = self.args.train_batch_size
        position = None if checkpoint is None else RunPosition.load(checkpoint)
        self.resumed = position if self.is_seekable else None
        if self.arrangement is not None:
            self.arrangement.load(checkpoint)
        if checkpoint is None or self.resumed is None:
            return
        index = len(self.resumed.starts) - 1
        stage = self.plan.stages[index]
        self.resumed.check_data(len(self._dataset), self._order(stage.section))
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        early_ends = _early_ends(checkpoint)
        left = self.resumed.steps_left(
            epochs=stage.section.epochs,
            num_steps=stage.num_steps,
            step_samples=self._step_samples(stage.section),
            cut_short=early_ends.get(index, state.global_step) > state.global_step,
            drop_last=self.args.dataloader_drop_last,
        )
        left = 0 if early_ends.get(index) == state.global_step else max(left, 0)
        if self.plan.place(state.global_step, self.resumed.starts, left, early_ends):
            self.args.max_steps = self.plan.last_step

    def resume(self, checkpoint: Path | None, epochs: int, global_step: int, steps_per_epoch: int) -> tuple[int, int]:
        """Where a run begins.

        Args:
            checkpoint (`Path`, *optional*): The one that it goes on from.
            epochs (`int`): Whole epochs before it, as Trainer counts.
            global_step (`int`): Steps that are done.
            steps_per_epoch (`int`): Of all epochs, where they are alike.

        Returns:
            `tuple[int, int]`: whole epochs that are done, and micro-batches of the next that have to be read and left
            out; none of data that can begin at any sample.
        """
        self._resume_at = 0
        if checkpoint is None:
            return epochs, 0
        if self.resumed is not None:
            self._resume_at = 0 if self.args.ignore_data_skip else self.resumed.samples
            return self.resumed.epoch, 0
        # The scheduler's state is loaded later, but where an epoch begins depends on the stages that ended early.
        self.plan.early_ends = _early_ends(checkpoint)
        steps = global_step % steps_per_epoch
        if self.plan.has_own_batches:
            epochs, steps = self.plan.epoch_of(global_step)
        if self.args.ignore_data_skip:
            return epochs, 0
        position = self.plan.locate(global_step) or self.plan.end()
        size, accumulation = self._batch_shape(position.stage.section)
        if not self.is_seekable:
            return epochs, steps * accumulation
        self._resume_at = steps * accumulation * size * self.args.world_size
        return epochs, 0

    def begin_stage(self, position: StagePosition) -> None:
        """Take on the batch size and the augmentation of a stage that begins."""
        self._stage = position.index
        self.batch_size, self.args.gradient_accumulation_steps = self._batch_shape(position.stage.section)
        if isinstance(self.rows, RowDataset):
            self.rows.stage = position.index

    def loader(self, collator: Callable[[list[Any]], dict[str, Any]]) -> DataLoader[Any]:
        """The batches of the stage under way, of seekable data; accelerate is yet to prepare them."""
        args, rows = self.args, self._dataset
        if isinstance(rows, CaptionStream):
            rows.lay_out(self.batch_size, args.world_size * max(args.dataloader_num_workers, 1))
        sampler = rows.epoch_sampler(args.seed if args.data_seed is None else args.data_seed)
        if args.train_sampling_strategy == "group_by_length":
            sampler.group_by_length(rows.lengths, self.batch_size * args.gradient_accumulation_steps * args.world_size)
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=collator,
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

    def begin_epoch(self) -> None:
        """Nothing of the present epoch is taken yet, beside what was before the run was resumed."""
        self._epoch_start, self._resume_at = self._resume_at, 0
        self._num_taken = 0

    def seek(self) -> None:
        """Let the data go on at the sample of the epoch that comes next, where it can."""
        if not self.is_seekable:
            return
        if self.arrangement is not None:
            assert self._dataset.order is not None
            self.arrangement.arrange(
                self._dataset.order,
                epoch=self.epoch,
                taken=self.samples_taken,
                stage=self._stage,
                step_samples=self._step_samples(self.plan.stages[self._stage].section),
            )
        self._dataset.start_epoch(self.epoch, at=self.samples_taken)

    def take(self, num_batches: int, step: int) -> StepSamples:
        """Count the micro-batches of a step; gives the samples in them."""
        first = self.samples_taken
        self._num_taken += num_batches
        return StepSamples(step, self.epoch, first, self.samples_taken)

    def epochs_done(self) -> float | None:
        """Passes over the data that are done; None where Trainer, which counts from a resumed sample, is right."""
        before: float = self._epoch_start / (self.batch_size * self.args.world_size)
        if before <= 0:
            return None
        return self.epoch + (before + self._num_taken) / (before + self.steps_in_epoch)

    def save_position(self, checkpoint: Path, global_step: int) -> None:
        """Write down in a checkpoint where the run is, so that it goes on there with any batch size."""
        if not self.is_seekable:
            return
        if self.arrangement is not None:
            self.arrangement.save(checkpoint)
        position = self.plan.locate(global_step) or self.plan.end()
        RunPosition(
            starts=[start for start, _ in self.plan.spans()][: position.index + 1],
            stage_step=position.step,
            epoch=self.epoch + self.is_epoch_over,
            samples=0 if self.is_epoch_over else self.samples_taken,
            num_samples=len(self._dataset),
            step_samples=self._step_samples(position.stage.section),
            order=self._order(position.stage.section),
            conditions=run_conditions(self.args),
        ).save(checkpoint)

    def rows_of(self, samples: StepSamples) -> str:
        """The rows of a step in words."""
        rows = self.rows
        if isinstance(rows, CaptionStream) or not isinstance(rows, RowDataset) or rows.order is None:
            return "rows unknown, the data is a stream"
        ids = rows.ids(rows.order.epoch_rows(samples.epoch)[0][samples.first : samples.last])
        return f"rows {', '.join(ids[:_SHOWN_IDS])}{', ...' if len(ids) > _SHOWN_IDS else ''}"

    def explain_shortage(self, position: StagePosition | None) -> str:
        """Which key to change where the memory of a step has run out, in the stage under way."""
        key, stage, size = "training.per_device_train_batch_size", "", self.batch_size
        if position is not None:
            stage = f"stage {position.stage.name}: "
            key = f"stages.{position.index}.batch_size" if position.stage.section.batch_size else key
        begun = f"{stage}memory ran out on the {self.args.device.type} device, in batches of {size}"
        if size == 1:
            return f"{begun}; set training.gradient_checkpointing: true, or a smaller data.image_size"
        is_exact = self._recipe is not None and self._recipe.pairs_per_step() is not None
        same = "contrastive.batch_size stays" if is_exact else "and raise training.gradient_accumulation_steps as much"
        return f"{begun}; lower {key} to {size // 2} ({same}), and go on from the last checkpoint with --allow-changes"

    @property
    def _dataset(self) -> RowDataset:
        assert isinstance(self.rows, RowDataset)
        return self.rows

    def _batch_shape(self, section: StageSection) -> tuple[int, int]:
        """Samples of a stage's micro-batch in each process, and how many of these make a step."""
        size = section.batch_size or self.args.train_batch_size
        if self._recipe is None:
            return size, self.args.gradient_accumulation_steps
        return size, accumulation_steps(self._recipe, self.args, section.batch_size)

    def _step_samples(self, section: StageSection) -> int:
        """Samples of a stage's step, over all micro-batches and processes."""
        size, accumulation = self._batch_shape(section)
        samples: int = size * accumulation * self.args.world_size
        return samples

    def _order(self, section: StageSection) -> str:
        """What the order of samples depends on beside seed and epoch."""
        if self.args.train_sampling_strategy == "group_by_length":
            return f"length, in steps of {self._step_samples(section)} samples"
        if not isinstance(self.rows, CaptionStream):
            return "table" if self.arrangement is None else self.arrangement.name
        readers = self.args.world_size * max(self.args.dataloader_num_workers, 1)
        return f"{readers} readers in batches of {self.args.train_batch_size}"


def _early_ends(checkpoint: Path) -> dict[int, int]:
    """Stages that were cut short when a checkpoint was written, and the step at which each ended."""
    return dict(torch.load(checkpoint / SCHEDULER_NAME, weights_only=True)["early_ends"])
