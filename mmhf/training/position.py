"""A run's position in stage, epoch and samples, from which it continues with any batch size or number of processes."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import TrainingArguments

from mmhf._version import __version__
from mmhf.errors import InputError
from mmhf.files import read_json_object, write_json

POSITION_FILE = "position.json"
"""In a checkpoint folder."""


@dataclass(frozen=True)
class RunPosition:
    """Where a run was when a checkpoint was written.

    Attributes:
        starts (`list[int]`): Global step at which each stage began, up to the one that the next step belongs to.
        stage_step (`int`): Steps of that stage's schedule that are done.
        epoch (`int`): Whole passes over the data.
        samples (`int`): Samples of the next pass that all processes together have trained on.
        num_samples (`int`): Samples of a pass.
        step_samples (`int`): Samples of a step of that stage, over all processes and micro-batches.
        order (`str`): What the order of samples depends on beside seed and epoch; the same for all batches of a table.
        conditions (`dict[str, str]`): As `run_conditions` gave them.
    """

    starts: list[int]
    stage_step: int
    epoch: int
    samples: int
    num_samples: int
    step_samples: int
    order: str
    conditions: dict[str, str]

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint folder."""
        write_json(checkpoint / POSITION_FILE, asdict(self))

    @classmethod
    def load(cls, checkpoint: Path) -> RunPosition | None:
        """That of a checkpoint; None where it was made by a version that wrote none."""
        path = checkpoint / POSITION_FILE
        return cls(**read_json_object(path)) if path.is_file() else None

    def check_data(self, num_samples: int, order: str) -> None:
        """Raise `InputError` where the run's samples are not those of now, or lie in another order."""
        if num_samples != self.num_samples:
            raise InputError(
                f"the training data has {num_samples:,} samples, and had {self.num_samples:,} when the checkpoint was "
                "written: a run cannot go on in the middle of other data; start a new one from its weights, or bring "
                "the data back"
            )
        if order != self.order:
            raise InputError(
                f"the training data is read by {order}, and was by {self.order} when the checkpoint was written, "
                "which changes the order of its samples; go on as before, or start a new run"
            )

    def steps_left(
        self, *, epochs: float | None, num_steps: int, step_samples: int, cut_short: bool, drop_last: bool
    ) -> int:
        """Steps that are left of the stage under way, where a step may have another number of samples than before.

        Args:
            epochs (`float`, *optional*): The stage's length; None where it is counted in steps, which stay as many.
            num_steps (`int`): Its length in steps of now.
            step_samples (`int`): Samples of a step of now.
            cut_short (`bool`): Whether the stage ends with this epoch.
            drop_last (`bool`): Whether an epoch ends without its last, short batch.
        """
        if epochs is None:
            return num_steps - self.stage_step

        def steps(samples: int, size: int) -> int:
            return samples // size if drop_last else math.ceil(samples / size)

        before = max(steps(self.num_samples, self.step_samples), 1)
        now = max(steps(self.num_samples, step_samples), 1)
        rest_of_epoch = self.num_samples - self.samples
        until_epoch_end = steps(rest_of_epoch, self.step_samples)
        left = max(math.ceil(epochs * before), 1) - self.stage_step
        if cut_short:
            return steps(rest_of_epoch, step_samples)
        if left <= until_epoch_end:
            return steps(min(left * self.step_samples, rest_of_epoch), step_samples)
        whole, part = divmod(left - until_epoch_end, before)
        last = steps(min(part * self.step_samples, self.num_samples), step_samples)
        return steps(rest_of_epoch, step_samples) + whole * now + last


def run_conditions(args: TrainingArguments) -> dict[str, str]:
    """What a run's results depend on beside its recipe: processes, precision, device and versions."""
    packages = ("torch", "transformers", "accelerate")
    return {
        "processes": str(args.world_size),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else str(args.mixed_precision or "no"),
        "device": args.device.type,
        "mmhf": __version__,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def condition_changes(checkpoint: Path, conditions: Mapping[str, str]) -> list[str]:
    """The conditions in which a checkpoint was made otherwise, as `name: old → new`."""
    position = RunPosition.load(checkpoint)
    before = conditions if position is None else position.conditions
    return [
        f"{name}: {before.get(name, 'absent')} → {value}"
        for name, value in conditions.items()
        if before.get(name) != value
    ]
