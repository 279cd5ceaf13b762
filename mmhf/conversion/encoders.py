"""Encoders and heads that several predecessors share: which backbone a checkpoint has, and its chains of layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from mmhf.conversion.checkpoint import Checkpoint, Linear, listed
from mmhf.errors import InputError
from mmhf.models.backbones import load_encoder_config
from mmhf.models.encoders import drop_unused
from mmhf.models.torchvision_encoder import TorchvisionConfig

SEED_BACKBONES = (
    *("resnet50", "efficientnet_b0", "mobilenet_v3_small", "resnet101", "densenet121", "efficientnet_b1"),
    *("efficientnet_b4", "vgg16", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"),
)
"""torchvision's names of what the predecessors train."""


@dataclass(frozen=True)
class FoundEncoder:
    """An encoder in a checkpoint.

    Attributes:
        backbone (`str`): Its name in a recipe.
        names (`dict[str, str]`): Name in the encoder → name in the checkpoint.
        width (`int`): Of its features before any pooling.
    """

    backbone: str
    names: dict[str, str]
    width: int


_skeletons: dict[str, nn.Module] = {}


def skeleton(config: PreTrainedConfig) -> nn.Module:
    """An encoder on the meta device, not to be changed: names and shapes."""
    key = config.to_json_string(use_diff=False)
    if key not in _skeletons:
        with torch.device("meta"):
            _skeletons[key] = AutoModel.from_config(config)
    return _skeletons[key]


def find_image_encoder(checkpoint: Checkpoint, backbone: str | None) -> FoundEncoder:
    """Find the image encoder of a checkpoint.

    Args:
        checkpoint ([`Checkpoint`]): The checkpoint.
        backbone (`str`, *optional*): Its name; absent: those that the predecessors use are tried.

    Raises:
        InputError: It is not there.
    """
    candidates = [backbone] if backbone else [f"torchvision/{name}" for name in SEED_BACKBONES]
    if backbone is None and any(name.endswith("conv_stem.weight") for name in checkpoint.weights):
        candidates = ["timm/efficientnet_b0.ra_in1k", "timm/mobilenetv3_small_100.lamb_in1k"]
    for name in candidates:
        config = load_encoder_config(name, pretrained=False, modality="image")
        encoder = skeleton(config)
        # timm and torchvision models stand inside a model of transformers.
        inner = next((child for label, child in encoder.named_children() if label in ("model", "timm_model")), encoder)
        found = checkpoint.locate(_shapes_of(config, inner))
        if found is None:
            continue
        prefix = (
            ""
            if inner is encoder
            else next(label for label, child in encoder.named_children() if child is inner) + "."
        )
        # Of the last features: as many as the last vector among the weights has numbers.
        weights = [checkpoint.weights[theirs] for theirs in found.values()]
        width = next(len(tensor) for tensor in reversed(weights) if tensor.dim() == 1)
        checkpoint.notes.append(f"{len(found)} tensors of {name}")
        return FoundEncoder(name, {prefix + own: theirs for own, theirs in found.items()}, width)
    what = f"no {backbone}" if backbone else f"none of {listed(SEED_BACKBONES)}"
    raise InputError(f"{checkpoint.path}: {what} in it; name its image encoder with --vision")


def _shapes_of(config: PreTrainedConfig, module: nn.Module) -> dict[str, torch.Size]:
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if not isinstance(config, TorchvisionConfig):
        return shapes
    # What torchvision's own head keeps before its last layer is no part of the encoder, and may have been replaced.
    heads = ("classifier.", "fc.", "heads.", "head.")
    return {name: shape for name, shape in shapes.items() if not name.startswith(heads)}


def find_text_encoder(checkpoint: Checkpoint, backbone: str) -> tuple[PreTrainedConfig, dict[str, str]]:
    """Find the text encoder of a checkpoint: its config, and name in the encoder → name in the checkpoint.

    Raises:
        InputError: It is not there.
    """
    config = load_encoder_config(backbone, modality="text")
    found = checkpoint.locate({name: tensor.shape for name, tensor in skeleton(config).state_dict().items()})
    if found is None:
        raise InputError(f"{checkpoint.path}: no text encoder of the shapes of {backbone}; name it with --text")
    checkpoint.notes.append(f"{len(found)} tensors of {backbone}")
    return config, found


def kept_of(config: PreTrainedConfig, unused: Sequence[str], names: dict[str, str]) -> dict[str, str]:
    """The part of an encoder's names that the model keeps, without what its pooling does not need."""
    kept = kept_names(config, unused)
    return {name: theirs for name, theirs in names.items() if name in kept}


def kept_names(config: PreTrainedConfig, unused: Sequence[str]) -> set[str]:
    """Names of an encoder in a model whose pooling leaves something unused."""
    encoder: Any = copy.deepcopy(skeleton(config))
    drop_unused(encoder, tuple(unused))
    return set(encoder.state_dict())


def prefixed(prefix: str, names: dict[str, str]) -> dict[str, str]:
    """Names of an encoder as names of the model that holds it."""
    return {prefix + name: theirs for name, theirs in names.items()}


def take_chain(checkpoint: Checkpoint, chain: Sequence[Linear], target: str) -> dict[str, Tensor]:
    """Linear layers with an activation and dropout between them, as `Sequential` numbers them; one stands alone."""
    if len(chain) == 1:
        return checkpoint.take_linear(chain[0], target)
    taken: dict[str, Tensor] = {}
    for index, linear in enumerate(chain):
        taken |= checkpoint.take_linear(linear, f"{target}.{3 * index}")
    return taken


def check_chain(checkpoint: Checkpoint, chain: Sequence[Linear], what: str) -> None:
    """Raise `InputError` unless each layer reads what the one before gives."""
    for first, second in zip(chain, chain[1:], strict=False):
        if first.outputs != second.inputs:
            raise InputError(
                f"{checkpoint.path}: {what}: {first.weight} gives {first.outputs} numbers, {second.weight} reads "
                f"{second.inputs}"
            )
