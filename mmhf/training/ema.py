"""Exponential moving averages of the weights: what a run is evaluated with and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.errors import InputError
from mmhf.recipe.training_sections import EmaSection
from mmhf.training.stages import StagePlan, StagePosition
from mmhf.training.weights import is_sharded

AVERAGES_FILE = "ema.safetensors"
"""In a checkpoint folder, beside the raw weights that training goes on from."""


@dataclass
class _Entry:
    """One tensor of the model with its average and the number of updates that made it."""

    tensor: torch.Tensor
    average: torch.Tensor
    num_updates: int = 0


class WeightAverage:
    """Averages of what the present stage trains; everything else is the model's own.

    A group joins at the first step of a stage that trains it, with its value of then, and keeps its average through
    later stages that train it, too. Where a stage freezes it, the average is dropped: what trains there learns beside
    the frozen weights as they are, so it is evaluated beside them.

    Buffers (batch-norm statistics) are averaged like weights: running statistics of the raw model describe activations
    that the averaged weights do not produce. Integer buffers, such as counters, stay the model's.

    Averages have the dtype of what they average, so half-precision weights would stall under a decay near 1; models
    of mmhf hold float32 weights. Under DistributedDataParallel each process computes the same averages of the same
    weights, with nothing to send; batch-norm statistics differ between processes, so the first process's averages of
    buffers, which are those that checkpoints hold, go to the others whenever they are put to use.

    Args:
        plan (`StagePlan`): The stages of the run.
        section (`EmaSection`, *optional*): Decay and warmup; absent, nothing is averaged, every method does nothing.
    """

    def __init__(self, plan: StagePlan, section: EmaSection | None) -> None:
        self.plan = plan
        self.section = section
        self._entries: dict[str, _Entry] = {}
        self._checkpoint: Path | None = None
        self._is_in_use = False

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Forget all averages; those of a checkpoint, if there is one, are loaded when the first stage begins."""
        self._entries = {}
        self._checkpoint = checkpoint

    def begin_stage(self, position: StagePosition) -> None:
        """Begin to average what a stage trains, and drop what it does not."""
        if self.section is None:
            return
        if self._checkpoint is not None:
            self.load(self._checkpoint)
        carried = position.index > 0 and self.plan.stages[position.index - 1].section.carry_best is not None
        if position.is_start and (carried or position.stage.section.start is not None):
            self._entries = {}  # the stage starts from other weights than those that were averaged
        tensors = self.plan.model.state_dict()
        self._entries = {
            name: self._entries.get(name) or _Entry(tensors[name], tensors[name].clone())
            for name in self._names(position.index)
        }

    def update(self) -> None:
        """Take the model's present weights into the averages; to be called after each optimizer step."""
        by_age: dict[int, list[_Entry]] = {}
        for entry in self._entries.values():
            by_age.setdefault(entry.num_updates, []).append(entry)
            entry.num_updates += 1
        for age, entries in by_age.items():
            assert self.section is not None
            decay = self.section.decay
            average_all = get_ema_multi_avg_fn(min(decay, (1 + age) / (10 + age)) if self.section.warmup else decay)
            average_all([entry.average for entry in entries], [entry.tensor for entry in entries], age)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model hold the averages, and its own weights again afterwards, bit for bit. May be nested."""
        if self._is_in_use:
            yield
            return
        self._is_in_use = True
        self._share_buffers()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            self._is_in_use = False

    def finish(self) -> None:
        """Leave the averages in the model for good, and forget them."""
        self._share_buffers()
        self._exchange()
        self.go_on_from(None)

    def save(self, checkpoint: Path) -> None:
        """Write the averages into a checkpoint folder; nothing when there are none."""
        if self._entries:
            averages = {name: entry.average.cpu().contiguous() for name, entry in self._entries.items()}
            ages = {name: entry.num_updates for name, entry in self._entries.items()}
            save_file(averages, checkpoint / AVERAGES_FILE, metadata={"num_updates": json.dumps(ages)})

    def load(self, checkpoint: str | Path) -> None:
        """Take over the averages of a checkpoint. One without them was made without `ema`: they begin anew."""
        self.go_on_from(None)
        path = Path(checkpoint) / AVERAGES_FILE
        if self.section is None or not path.is_file():
            return
        tensors = self.plan.model.state_dict()
        with safe_open(path, framework="pt") as stored:
            for name, num_updates in json.loads(stored.metadata()["num_updates"]).items():
                average = tensors[name].clone().copy_(stored.get_tensor(name))
                self._entries[name] = _Entry(tensors[name], average, num_updates)

    def _names(self, stage: int) -> list[str]:
        """Parameters that a stage trains, and the saved float buffers of the modules that hold them."""
        model, partition = self.plan.model, self.plan.partition
        trained = self.plan.stages[stage].curves
        frozen = tuple(f"{name}." for name, _ in partition.frozen_modules(model, trained))
        saved = model.state_dict().keys()
        buffers = [
            name
            for name, buffer in model.named_buffers()
            if name in saved and buffer.is_floating_point() and not name.startswith(frozen)
        ]
        return [name for group in trained for name in partition[group]] + buffers

    def _exchange(self) -> None:
        for entry in self._entries.values():
            kept = entry.tensor.clone()
            entry.tensor.copy_(entry.average)
            entry.average.copy_(kept)

    def _share_buffers(self) -> None:
        buffers = dict(self.plan.model.named_buffers()).keys()
        broadcast([entry.average for name, entry in self._entries.items() if name in buffers])


class AverageWeights(TrainerCallback):
    """Keeps a `WeightAverage` up to date, and leaves the averages in the model when training ends."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.average.section is not None and is_sharded():
            raise InputError("ema: needs whole weights on each process; FSDP and DeepSpeed keep parts, remove `ema`")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.average.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            # Its model.safetensors, which Trainer has just loaded, is what training goes on from; what was measured
            # are its averages.
            self.average.load(state.best_model_checkpoint)
        self.average.finish()
