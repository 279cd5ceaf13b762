"""What MMTrainer adds where stages have batches of their own: another size, other augmentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from mmhf.data.datasets import RowDataset
from mmhf.training.stages import StagePlan


class StageBatches(Trainer):
    """The part of a Trainer that gives each stage its own data loader.

    Trainer makes one loader and takes every epoch to be as long as the first. Here each epoch asks the plan for its
    stage, and its length follows from the stage's batch size. Trainer counts the epochs itself; all that is overridden
    are the lengths that it is told.
    """

    plan: StagePlan

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        epochs, *rest = super().set_initial_training_values(args, dataloader)
        return (self.plan.num_epochs if self.plan.has_own_batches else epochs, *rest)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if not self.plan.has_own_batches or resume_from_checkpoint is None:
            return position
        # The scheduler's state is loaded later, but where an epoch begins depends on the stages that ended early.
        state = torch.load(Path(resume_from_checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.plan.early_ends = dict(state["early_ends"])
        epochs, steps = self.plan.epoch_of(self.state.global_step)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        position = self.plan.locate(self.state.global_step)
        if self.plan.has_own_batches and position is not None:
            section = self.plan.stages[position.index].section
            self._train_batch_size = section.batch_size or self.args.train_batch_size
            if isinstance(self.train_dataset, RowDataset):
                self.train_dataset.stage = position.index
            loader = self.get_train_dataloader()
            steps = len(loader)
            kwargs["train_dataloader"] = self.callback_handler.train_dataloader = loader
            kwargs["steps_in_epoch"] = steps
            kwargs["num_update_steps_per_epoch"] = math.ceil(steps / self.args.gradient_accumulation_steps)
        super()._run_epoch(*args, **kwargs)
