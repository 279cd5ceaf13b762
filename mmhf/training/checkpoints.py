"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from mmhf.damage import COMPLETE_FILE, find_damage, mark_complete
from mmhf.errors import InputError

if TYPE_CHECKING:
    from mmhf.training.ema import WeightAverage
    from mmhf.training.trainer import MMTrainer

logger = logging.getLogger(__name__)

# How torch.save reports that a file could not be written.
_TORCH_WRITE_FAILURES = ("inline_container.cc", "iostream error")
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(run_dir: Path, global_step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run_dir / f"checkpoint-{global_step}"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


@contextlib.contextmanager
def failed_writes_as_os_errors(folder: Path | Callable[[], Path]) -> Iterator[None]:
    """Raise `OSError` where safetensors and torch report by errors of their own that a file could not be written."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TORCH_WRITE_FAILURES):
            raise
        path = folder() if callable(folder) else folder
        raise OSError(f"{path}: cannot be written, is the disk full? ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def saved_under_own_names(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Let a model save its weights by the names they have now, if that is wanted.

    transformers 5.24 saves ViT and other encoders by the names that they had before version 5, and Trainer reads a
    checkpoint back without translating them: it would go on with other weights (docs/upstream/renamed_weights.py).
    """
    if not wanted:
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


@contextlib.contextmanager
def removed_if_unwritable(checkpoint: Callable[[], Path]) -> Iterator[None]:
    """Take away what was written of a checkpoint when a file of it cannot be written.

    Args:
        checkpoint (`Callable`): Gives the one that would be written now.

    Raises:
        OSError: A file cannot be written.
    """
    try:
        with failed_writes_as_os_errors(checkpoint):
            yield
    except OSError:
        if not (checkpoint() / COMPLETE_FILE).is_file():
            shutil.rmtree(checkpoint(), ignore_errors=True)
        raise


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """The latest checkpoint of a run that was written to its end and is as it was written; None when there is none.

    Raises:
        InputError: All checkpoints are damaged.
    """
    damages = []
    for checkpoint in complete_checkpoints(run_dir):
        if (damage := find_damage(checkpoint)) is None:
            return checkpoint
        logger.warning("%s: %s; an earlier checkpoint is taken, if there is one", checkpoint, damage)
        damages.append(f"{checkpoint.name}: {damage}")
    if damages:
        raise InputError(
            f"{run_dir}: no checkpoint is whole any more ({'; '.join(damages)}); remove the folder to train anew"
        )
    return None


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run that were written to their end, the latest first."""
    found = {}
    for path in run_dir.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / COMPLETE_FILE).is_file():
            found[int(match.group(1))] = path
    return [found[step] for step in sorted(found, reverse=True)]


def is_finite(checkpoint: Path) -> bool:
    """Whether all weights of a checkpoint are numbers; sharded ones, which are not looked at, count as good."""
    path = checkpoint / SAFE_WEIGHTS_NAME
    if not path.is_file():
        return True
    with safe_open(path, framework="pt") as weights:
        return all(bool(weights.get_tensor(name).isfinite().all()) for name in weights.keys())  # noqa: SIM118


class CheckpointEvents(TrainerCallback):
    """When an [`MMTrainer`] saves, and what makes its checkpoints whole.

    Args:
        trainer ([`MMTrainer`]): The trainer.
        average ([`WeightAverage`]): Its averages, which Trainer does not know of.
    """

    def __init__(self, trainer: MMTrainer, average: WeightAverage) -> None:
        self.trainer = trainer
        self.average = average
        self._is_save_due = False
        self._save_total_limit: int | None = None

    @contextlib.contextmanager
    def kept_until_replaced(self) -> Iterator[None]:
        """Delete old checkpoints only when a new one is whole.

        Trainer deletes them before, and, with a limit of 1, all but the best when training ends: a run that is stopped
        while its splits are evaluated would go back to that one.
        """
        args = self.trainer.args
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            args.save_total_limit = self._save_total_limit

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count epochs, and put off the checkpoint of an epoch's last step until the epoch was evaluated.

        A run that is stopped in that evaluation goes on before it; from a checkpoint it would begin the next epoch.
        """
        state.epoch = self.trainer.data.epochs_done() or state.epoch
        is_last = self.trainer.data.is_epoch_over or control.should_training_stop
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
        """Add to a checkpoint what Trainer does not know of, say that it is whole, and delete older ones."""
        self._is_save_due = False
        self.trainer.check_weights()
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            checkpoint = checkpoint_path(self.trainer.run_dir, state.global_step)
            self.average.save(checkpoint)
            self.trainer.data.save_position(checkpoint, state.global_step)
            mark_complete(checkpoint)
            rotate_checkpoints(
                output_dir=str(self.trainer.run_dir),
                save_total_limit=self._save_total_limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=False,
            )
