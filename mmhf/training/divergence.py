"""The end of a run whose numbers are none any more, and the naming of a loss that jumps."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmhf.errors import InputError
from mmhf.training.checkpoints import complete_checkpoints, is_finite
from mmhf.training.loss_watch import LossWatch
from mmhf.training.weights import is_sharded

if TYPE_CHECKING:
    from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)


class DivergenceGuard:
    """Judges an [`MMTrainer`]'s losses when it logs, and its weights before they are kept.

    Args:
        trainer ([`MMTrainer`]): The trainer; its `stops_at_nan` says whether what is found ends the run.

    Attributes:
        watch ([`LossWatch`]): The losses of its steps.
    """

    def __init__(self, trainer: MMTrainer) -> None:
        self.trainer = trainer
        self.watch = LossWatch()

    def check_losses(self, logged: float) -> None:
        """Look at the losses since the last log line, and warn of a jump.

        Args:
            logged (`float`): Their mean, of all processes.

        Raises:
            InputError: It is no number.
        """
        trainer = self.trainer
        if not trainer.stops_at_nan:
            return
        if not math.isfinite(logged):
            raise InputError(self.explain(f"the loss is {logged}"))
        spike, current = self.watch.look(self._gathered).spike, trainer.stages.current
        if spike is not None and current is not None and trainer.is_world_process_zero():
            logger.warning(
                "Step %d, stage %s: the loss jumped to %.4g, from %.4g as is usual; %s",
                *(spike.samples.step, current.stage.name, spike.loss, spike.median),
                trainer.data.rows_of(spike.samples),
            )

    def check_weights(self) -> None:
        """Raise `InputError` where the model's weights are no numbers, so that no checkpoint keeps them."""
        if not self.trainer.stops_at_nan or is_sharded():
            return
        tensors = [each for each in self.trainer.plan.model.state_dict().values() if each.is_floating_point()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise InputError(self.explain("the weights are no numbers any more"))

    def explain(self, what: str, *, step: int | None = None) -> str:
        """Say where a run came to numbers that are none, and how to go on.

        Args:
            what (`str`): What is no number.
            step (`int`, *optional*): The step where it was found; absent: the first whose loss was no number, else
                some step since the last log line.
        """
        trainer = self.trainer
        broken = None if step else self.watch.look(self._gathered).broken
        rows = "" if broken is None else f" ({trainer.data.rows_of(broken)})"
        last = step or (trainer.state.global_step if broken is None else broken.step)
        first = last if step or broken else trainer._globalstep_last_logged + 1
        steps = f"step {last}" if first >= last else f"steps {first} to {last}"
        stage = f", stage {trainer.stages.current.stage.name}" if trainer.stages.current else ""
        good = next((path for path in complete_checkpoints(trainer.run_dir) if is_finite(path)), None)
        return (
            f"{steps}{stage}: {what}{rows}; last good checkpoint: {good or 'none yet'}; go on from it with a lower "
            "training.learning_rate, a longer warmup, training.max_grad_norm or in full precision"
        )

    def _gathered(self, losses: Tensor) -> Tensor:
        gathered: Tensor = self.trainer.accelerator.gather(losses)
        return gathered.reshape(self.trainer.args.world_size, -1)
