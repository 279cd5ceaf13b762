"""Settings that suit the device, where a recipe is silent: precision, copies to the GPU, processes that read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import parse_flag_from_env

from mmhf.data.collators import ImageCollator
from mmhf.data.pixels import NORMALISING_SWITCH, why_normalised_ahead
from mmhf.errors import InputError
from mmhf.models.encoders import CHANNELS_LAST_SWITCH, why_not_channels_last
from mmhf.models.tower import TowerModel

_LAUNCHED = "ACCELERATE_MIXED_PRECISION"
_MOST_WORKERS = 8
_BATCHES_AHEAD = 4
_TF32_FROM = (8, 0)


@dataclass(frozen=True)
class Precision:
    """What matrix products and convolutions are computed in, and why.

    Attributes:
        mixed (`"no" | "bf16" | "fp16"`): `no` is fp32; fp16 comes with a scaled loss.
        reason (`str`): Who chose it.
    """

    mixed: Literal["no", "bf16", "fp16"]
    reason: str

    def __str__(self) -> str:
        return f"{'fp32' if self.mixed == 'no' else self.mixed}: {self.reason}"


def choose_precision(training: Mapping[str, Any]) -> Precision:
    """What the recipe says, else what accelerate was configured with, else what suits the device.

    `accelerate launch` says `mixed_precision: no` by default, so this leaves the choice to the device.

    Args:
        training (`Mapping[str, Any]`): The recipe's `training` section, as it is written.

    Raises:
        InputError: The recipe and accelerate's configuration contradict each other.
    """
    launched = os.environ.get(_LAUNCHED, "no").lower()
    asked = [name for name in ("bf16", "fp16") if training.get(name)]
    refused = [name for name in ("bf16", "fp16") if training.get(name) is False]
    if launched in ("bf16", "fp16"):
        if launched in refused or asked not in ([], [launched]):
            word = f"{asked[0]}: true" if asked else f"{launched}: false"
            raise InputError(
                f"training.{word}, but accelerate's configuration says mixed_precision: {launched}; remove one of them"
            )
        return Precision("bf16" if launched == "bf16" else "fp16", "accelerate's configuration")
    if asked or refused:
        return Precision("no" if not asked else "bf16" if asked[0] == "bf16" else "fp16", "the recipe")
    if not uses_cuda(training):
        return Precision("no", "not on a CUDA device; training.bf16: true asks for it")
    card = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", f"{card} has it; training.bf16: false turns it off")
    return Precision("fp16", f"{card} has no bf16, the loss is scaled; training.fp16: false turns it off")


def device_defaults(training: Mapping[str, Any], *, is_stream: bool) -> dict[str, Any]:
    """Values of `TrainingArguments` that suit the device, for keys that a recipe leaves open.

    None of them changes the order of samples or what a sample looks like. On a CPU no readers are started: they would
    take cores from the process that computes.

    Args:
        training (`Mapping[str, Any]`): The recipe's `training` section.
        is_stream (`bool`): Whether the data is a stream, whose order depends on how many processes read.

    Raises:
        InputError: As of `choose_precision`.
    """
    precision = choose_precision(training)
    if not uses_cuda(training):
        # TrainingArguments itself reads what accelerate was launched with; bf16 it takes for a GPU's unless told.
        on_cpu = {"use_cpu": True} if training.get("bf16") and not torch.accelerator.is_available() else {}
        return {"dataloader_pin_memory": False, **on_cpu}
    # A copy from pinned memory runs beside the program.
    values: dict[str, Any] = {"dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True}}
    if precision.mixed != "no":
        values[precision.mixed] = True
    if precision.mixed != "no" and torch.cuda.get_device_capability() >= _TF32_FROM:
        values["tf32"] = True  # what stays fp32 under autocast needs no more precision than what surrounds it
    if not is_stream and "dataloader_num_workers" not in training:
        own_cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if workers := min(max(own_cores - 1, 0), _MOST_WORKERS):
            values["dataloader_num_workers"] = workers
            values["dataloader_persistent_workers"] = True
            values["dataloader_prefetch_factor"] = _BATCHES_AHEAD
    return values


def normalise_on_device(model: torch.nn.Module | None, device: torch.device, *collators: object) -> None:
    """Let collators send images to a CUDA device as uint8 pixels, which the model normalises there.

    A batch of floats has four times the bytes, and it is written by a reading process, copied into pinned memory and
    copied to the device. Nothing is changed where a processor cannot; images that are mixed stay floats.

    Args:
        model (`nn.Module`, *optional*): What the batches are for.
        device (`torch.device`): Where it runs.
        collators: What makes its batches, all of them or none; None is passed over.
    """
    if why_normalised_ahead(device) is not None or not isinstance(model, TowerModel):
        return
    for collator in collators:
        if isinstance(collator, ImageCollator) and (left := collator.leave_normalising()) is not None:
            model.normalise_pixels(*left)


def describe_images(model: Any, device: torch.device) -> str:
    """What `mmhf plan` says of how images go into an encoder: where they are normalised, and their memory format."""
    if why_normalised_ahead(device) is None:
        where = f"as uint8, normalised on the device ({NORMALISING_SWITCH}=off turns it off); "
    else:
        where = ""
    reason = why_not_channels_last(model.vision_output, device)
    if reason is not None:
        return f"{where}channel by channel ({reason})"
    gain = "1.4" if device.type == "cpu" else "1.8 to 1.9"
    return (
        f"{where}channels last, which convolutions take {gain} times as fast ({CHANNELS_LAST_SWITCH}=off turns it off)"
    )


def uses_cuda(training: Mapping[str, Any]) -> bool:
    """Whether a run of this `training` section computes on a CUDA device."""
    on_cpu = bool(training.get("use_cpu")) or parse_flag_from_env("ACCELERATE_USE_CPU")
    return torch.cuda.is_available() and not on_cpu
