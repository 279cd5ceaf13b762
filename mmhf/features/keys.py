"""What decides the features of a frozen part, as the name of the store that holds them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import PIL
import timm
import torch
import transformers
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, ProcessorMixin

from mmhf.conventions import Processor
from mmhf.data.pixels import why_normalised_ahead
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.models.encoders import CHANNELS_LAST_SWITCH, why_not_channels_last
from mmhf.models.partition import Partition
from mmhf.models.processing import PairProcessor

_FORMAT = 3
# Names of where something came from; the weights themselves are hashed.
_NAMES_ONLY = ("_name_or_path", "name_or_path", "transformers_version")


def part_tensors(model: PreTrainedModel, part: FeaturePart) -> Iterator[tuple[str, Tensor]]:
    """Names, parameters and buffers of a part; below a boundary, the buffers of modules that hold its parameters."""
    assert isinstance(model, HasFeatureParts)
    partition = Partition.of(model)
    own = model.part_groups(part)
    modules = partition.frozen_modules(model, [group for group in partition if group not in own])
    prefixes = tuple(f"{name}." for name, _ in modules if f"{name}.".startswith(f"{part.name}."))
    inside = set(partition.parameters_of(own))
    for name, parameter in model.named_parameters():
        if name in inside:
            yield name, parameter
    for name, buffer in model.named_buffers():
        if name.startswith(prefixes):
            yield name, buffer


def part_state(model: PreTrainedModel, part: FeaturePart) -> tuple[tuple[int, int], ...]:
    """Changes whenever a tensor of a part is written or replaced; costs nothing."""
    return tuple((tensor.data_ptr(), tensor._version) for _, tensor in part_tensors(model, part))


def weights_digest(model: PreTrainedModel, part: FeaturePart) -> str:
    """Digest over a part's parameters and buffers, by name."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(part_tensors(model, part)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def store_name(
    model: PreTrainedModel,
    part: FeaturePart,
    processor: Processor,
    *,
    dtype: torch.dtype,
    precision: str,
    device: torch.device,
    least_side: int | None = None,
) -> str:
    """Name of the store for a part's features: the same exactly where samples get the same features.

    It is made of the part's weights, their bits and its config, of what prepares its inputs, of the precision, of the
    kind of device, of the images' memory format, by which kernels round, and of the versions of the libraries that
    compute.

    Args:
        model (`PreTrainedModel`): The model.
        part (`FeaturePart`): One of its parts.
        processor (`Processor`): What makes its inputs.
        dtype (`torch.dtype`): In which features are stored.
        precision (`str`): Accelerate's mixed precision that it computes in: `no`, `bf16`, ...
        device (`torch.device`): Where.
        least_side (`int`, *optional*): See [`~mmhf.data.collators.ImageCollator`].
    """
    assert isinstance(model, HasFeatureParts)
    is_channels_last = part.name == "vision" and why_not_channels_last(model.vision_output, device) is None
    values: dict[str, Any] = {
        **_computed_by(device, precision),
        "model": type(model).__name__,
        "part": repr(part),
        "weights": weights_digest(model, part),
        "config": _config_of(model, part),
        "processor": _processing(processor, part),
        "dtype": str(dtype),
        "images": "channels last" if is_channels_last else "contiguous",
    }
    if part.name == "vision" and why_normalised_ahead(device) is None:
        values["normalised"] = "by the device"
    if (few_bits := vars(model.config).get(f"{part.name}_quantization")) is not None:
        values["few bits"] = [few_bits, importlib.metadata.version(few_bits["library"])]
    if least_side is not None and part.name == "vision":
        values["least side"] = least_side
    return _named(part.name, values)


def answers_store_name(
    part: FeaturePart, commit: str, *, precision: str, device: torch.device, given: object = None
) -> str:
    """Name of the store for what a released model answers, whose processor makes its inputs.

    Args:
        part (`FeaturePart`): What it answers, and of which inputs.
        commit (`str`): Hash of the release, its weights, config and processor; or the Hub's commit.
        precision, device: As of `store_name`.
        given (`object`, *optional*): What else decides its inputs.
    """
    memory_format = os.environ.get(CHANNELS_LAST_SWITCH, "")
    values = {"part": repr(part), "commit": commit, "given": repr(given), "images": memory_format}
    return _named(part.name, {**_computed_by(device, precision), **values})


def _named(part: str, values: Mapping[str, Any]) -> str:
    content = json.dumps(values, sort_keys=True, default=str).encode()
    return f"{part}-{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def _computed_by(device: torch.device, precision: str) -> dict[str, Any]:
    """What kernels round by, and the versions of the libraries that compute."""
    return {
        "format": _FORMAT,
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "float32": _float32_products(device),
        "versions": [torch.__version__, transformers.__version__, timm.__version__, PIL.__version__],
    }


def _float32_products(device: torch.device) -> list[str]:
    """In which format matrix products and convolutions of float32 are rounded: IEEE's, TF32, ...

    `torch.get_float32_matmul_precision()` is an error where a library has used the newer switches that are read here.
    """
    products, convolutions = (
        (torch.backends.cuda, torch.backends.cudnn) if device.type == "cuda" else (torch.backends.mkldnn,) * 2
    )
    switches = (products.matmul.fp32_precision, convolutions.conv.fp32_precision)
    return ["ieee" if switch == "none" else switch for switch in switches]


def _config_of(model: PreTrainedModel, part: FeaturePart) -> dict[str, Any]:
    config = model.config.to_dict()
    chosen = {
        key: value
        for key, value in config.items()
        if key.startswith(f"{part.name}_") and key not in (f"{part.name}_backbone", f"{part.name}_quantization")
    }
    if config.get("lora") is not None:
        chosen["lora"] = config["lora"]
    return _without_names({**chosen, "eot_token_id": config.get("eot_token_id")})


def _without_names(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_names(child) if isinstance(child, Mapping) else child
        for key, child in values.items()
        if key not in _NAMES_ONLY
    }


def _processing(processor: Processor, part: FeaturePart) -> dict[str, Any]:
    if part.name == "vision":
        images = processor.image_processor if isinstance(processor, ProcessorMixin) else processor
        assert isinstance(images, BaseImageProcessor)
        return _without_names(images.to_dict())
    assert isinstance(processor, ProcessorMixin)
    pairs = cast(PairProcessor, processor)
    tokenizer = pairs.tokenizer
    if not tokenizer.is_fast:
        return {"kind": type(pairs).__name__, "length": pairs.max_length, "slow": tokenizer.get_vocab()}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # A fast tokenizer keeps the truncation and padding of its last call.
    kept = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    padding = [tokenizer.padding_side, tokenizer.pad_token_id]
    return {"kind": type(pairs).__name__, "length": pairs.max_length, "padding": padding, "tokenizer": kept}
