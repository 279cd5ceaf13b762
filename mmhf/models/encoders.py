"""What every family needs to know of an encoder: how to run and pool it, its width, its unused parameters.

Depends on torch, transformers, timm, `conventions`, `layer_groups`, `naflex` and `torchvision_encoder` only, so that
a release can carry this file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
    TimmWrapperConfig,
)
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

from mmhf.conventions import ImageSize, height_and_width
from mmhf.models.layer_groups import layer_groups
from mmhf.models.naflex import SIGLIP2, run_on_sequences, run_siglip2
from mmhf.models.torchvision_encoder import TorchvisionConfig, TorchvisionEncoder

AutoConfig.register(TorchvisionConfig.model_type, TorchvisionConfig, exist_ok=True)
AutoModel.register(TorchvisionConfig, TorchvisionEncoder, exist_ok=True)
# transformers 5.24 leaves SigLIP's text encoder out of its own list.
AutoModel.register(SiglipTextConfig, SiglipTextModel, exist_ok=True)

VisionPooling = Literal["avg", "max", "concat", "blocks", "cls", "pooler"]
TextPooling = Literal["cls", "mean", "max", "last_token", "pooler"]
VISION_POOLINGS: tuple[str, ...] = get_args(VisionPooling)
TEXT_POOLINGS: tuple[str, ...] = get_args(TextPooling)

CHANNELS_LAST_SWITCH = "MMHF_CHANNELS_LAST"
_CONVOLVE_CHANNELS_LAST = ("cpu", "cuda")


@dataclass(frozen=True)
class EncoderOutput:
    """How an encoder's output is read, found once by a pass on the meta device and kept in the model's config.

    Attributes:
        width (`int`): Length of the pooled vector.
        layout (`"tokens" | "channels_first" | "channels_last"`): Axes of `last_hidden_state`: (B, T, C), (B, C, H, W)
            or (B, H, W, C).
        prefix_tokens (`int`): Class and register tokens in front of the patches.
        unused (`tuple[str, ...]`): Modules, or lone parameters, that the pooled vector does not depend on.
    """

    width: int
    layout: Literal["tokens", "channels_first", "channels_last"] = "tokens"
    prefix_tokens: int = 0
    unused: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderOutput:
        return cls(**{**values, "unused": tuple(values["unused"])})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "unused": list(self.unused)}


def timm_config(
    architecture: str, preprocessing: dict[str, Any], model_args: dict[str, Any] | None = None
) -> TimmWrapperConfig:
    """Config of a timm encoder without a classifier.

    Args:
        architecture (`str`): timm's name.
        preprocessing (`dict`): `input_size`, `mean`, `std` and `interpolation`, as timm's registry has them.
        model_args (`dict`, *optional*): Further arguments of `timm.create_model`.
    """
    values: dict[str, Any] = {"pretrained_cfg": preprocessing, "num_labels": 0}
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, **values)


def fresh_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Encoder without pretrained weights, in the config's dtype; on the meta device inside its context."""
    encoder: PreTrainedModel = AutoModel.from_config(config)
    if isinstance(encoder, TimmWrapperModel) and encoder.device.type != "meta":
        # transformers 5.23 overwrites timm's initialisation with a generic one, which kills the signal of deep nets.
        fresh = timm.create_model(config.architecture, num_classes=0, **(config.model_args or {}))
        encoder.timm_model.load_state_dict(fresh.state_dict())
    return encoder


def native_image_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width in pixels of the images that an encoder was made for (224 where its config does not say)."""
    values = config.to_dict()
    size: Any = values.get("image_size") or 224
    if config.model_type == "timm_wrapper":
        own = (values.get("pretrained_cfg") or {}).get("input_size", (3, 224, 224))[-2:]
        size = (values.get("model_args") or {}).get("img_size") or own
    return height_and_width(size if isinstance(size, int) else (int(size[0]), int(size[1])))


# What is used is read off the graph, also where the caller wants none.
@torch.enable_grad()
def describe_vision(config: PreTrainedConfig, pooling: str, *, image_size: ImageSize | None = None) -> EncoderOutput:
    """Read an image encoder's output from its config alone; no weights are made.

    Args:
        config (`PreTrainedConfig`): The encoder's config.
        pooling (`str`): As in [`pool_vision`].
        image_size ([`ImageSize`], *optional*): Of the images to come; absent = what the encoder was made for.

    Raises:
        `ValueError`: the encoder has no such pooling, no layer groups, or cannot take images of this size.
    """
    height, width = height_and_width(image_size or native_image_size(config))
    encoder = _skeleton(config)
    layer_groups(encoder)
    with torch.device("meta"):
        pixel_values = torch.zeros(2, 3, height, width)
    try:
        output = run_vision(encoder, pixel_values, pooling)
    except (AssertionError, RuntimeError) as error:
        # How timm refuses a size, and torch what does not fit together.
        size = str(height) if height == width else f"{height} x {width}"
        raise ValueError(f"images of {size} px do not fit: {error}") from error
    if not isinstance(output.last_hidden_state, Tensor):
        raise ValueError("the encoder gives several feature maps; choose one that gives a single one")
    shape = _vision_shape(encoder, output.last_hidden_state, (height, width))
    pooled = pool_vision(output, pooling, shape)
    return replace(shape, width=pooled.shape[-1], unused=_unused(encoder, pooled))


@torch.enable_grad()
def describe_text(config: PreTrainedConfig, pooling: str) -> EncoderOutput:
    """Read a text encoder's output from its config alone; no weights are made.

    Raises:
        `ValueError`: the encoder has no such pooling.
    """
    try:
        encoder, pooled = _pooled_text(config, pooling, device="meta")
    except RuntimeError:
        # DeBERTa reads values out of tensors, which the meta device does not have.
        encoder, pooled = _pooled_text(config, pooling, device="cpu")
    return EncoderOutput(pooled.shape[-1], unused=_unused(encoder, pooled))


def run_vision(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str, **asked: bool) -> Any:
    """Run an image encoder and no more of its head than `pooling` needs.

    Args:
        encoder (`PreTrainedModel`): The encoder.
        pixel_values (`Tensor`): (B, 3, H, W), or (B, N, 3 P² + 1): patches of images in their own shape.
        pooling (`str`): As in [`pool_vision`].
        asked (`bool`): `output_hidden_states`, `output_attentions`: what the output shall hold beside.

    Raises:
        `ValueError`: attentions of an encoder of timm or torchvision, which gives none, outputs of the blocks of one
            that does not give them, or patches before one that takes images of one shape only.
    """
    if pooling == "blocks":
        asked["output_hidden_states"] = True
    if pixel_values.dim() == 3:
        return run_on_sequences(encoder, pixel_values, pooling, **asked)
    if encoder.config.model_type == SIGLIP2:
        return run_siglip2(encoder, pixel_values, **asked)
    if encoder.config.model_type in ("timm_wrapper", TorchvisionConfig.model_type):
        return encoder(pixel_values=pixel_values, do_pooling=pooling == "pooler", return_dict=True, **asked)
    accepted = inspect.signature(type(encoder).forward).parameters
    if "interpolate_pos_encoding" in accepted and tuple(pixel_values.shape[-2:]) != native_image_size(encoder.config):
        asked["interpolate_pos_encoding"] = True
    return encoder(pixel_values=pixel_values, return_dict=True, **asked)


def why_not_channels_last(output: EncoderOutput, device: torch.device) -> str | None:
    """Why images go into an encoder channel by channel; None where they go in as channels last.

    Args:
        output (`EncoderOutput`): Of the encoder.
        device (`torch.device`): Where it runs.
    """
    if output.layout != "channels_first":
        return "the encoder is no convolutional network"
    if device.type not in _CONVOLVE_CHANNELS_LAST:
        return f"it runs on {device.type}"
    return f"{CHANNELS_LAST_SWITCH}=off" if os.environ.get(CHANNELS_LAST_SWITCH) == "off" else None


def laid_out(pixel_values: Tensor, output: EncoderOutput) -> Tensor:
    """Images as they are fastest for an encoder: channels last before convolutions.

    Images alone are converted. A convolution gives what it gets, so that all of the encoder runs so, while weights,
    gradients and whatever is saved of them stay as they are.

    Args:
        pixel_values (`Tensor`): (B, 3, H, W).
        output (`EncoderOutput`): Of the encoder.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or pixel_values.dtype == torch.float64:
        return pixel_values
    # What is not contiguous has a layout already, or is one number that stands for an image.
    if not pixel_values.is_contiguous() or why_not_channels_last(output, pixel_values.device) is not None:
        return pixel_values
    return pixel_values.contiguous(memory_format=torch.channels_last)


def pool_vision(output: Any, pooling: str, shape: EncoderOutput) -> Tensor:
    """Make one vector of a grid of features or of patch tokens; padding never counts.

    Args:
        output: An encoder's output with `last_hidden_state`, `pooler_output` for `pooling="pooler"`, and `patch_mask`
            where there is padding.
        pooling (`str`): `avg` or `max` over the patches (class and register tokens left out), `concat` of the two,
            `blocks` (the averages of the outputs of all blocks, from the first to the last, and of the encoder),
            `cls` (the first token) or `pooler` (the encoder's own).
        shape (`EncoderOutput`): Layout of `last_hidden_state` and its number of prefix tokens.

    Returns:
        `Tensor` of shape (B, width).

    Raises:
        `ValueError`: the encoder has no such pooling.
    """
    if pooling == "pooler":
        return _own_pooler(output)
    hidden: Tensor = output.last_hidden_state
    if pooling == "cls":
        if shape.layout != "tokens" or shape.prefix_tokens == 0:
            raise ValueError("pooling 'cls' needs an encoder with a class token; use 'avg'")
        return hidden[:, 0]
    mask: Tensor | None = output.get("patch_mask")
    patches = patch_tokens(hidden, shape)
    if pooling == "blocks":
        return torch.cat([_mean(each, mask) for each in (*_outputs_of_blocks(output, shape), patches)], dim=-1)
    if pooling == "avg":
        return _mean(patches, mask)
    if pooling in ("max", "concat"):
        highest = patches.amax(dim=1) if mask is None else pool_text(patches, mask, "max")
        return highest if pooling == "max" else torch.cat([_mean(patches, mask), highest], dim=-1)
    raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(VISION_POOLINGS)}")


def grid_tokens(hidden: Tensor, shape: EncoderOutput) -> Tensor:
    """An encoder's `last_hidden_state` as (B, T, width), class and register tokens included."""
    if shape.layout == "channels_first":
        return hidden.flatten(2).transpose(1, 2)
    return hidden.flatten(1, 2) if shape.layout == "channels_last" else hidden


def patch_tokens(hidden: Tensor, shape: EncoderOutput) -> Tensor:
    """An encoder's `last_hidden_state` as (B, patches, width), without class and register tokens."""
    return grid_tokens(hidden, shape)[:, shape.prefix_tokens :]


def pool_text_output(output: Any, attention_mask: Tensor, pooling: str) -> Tensor:
    """Make one vector (B, width) of a text encoder's output; `pooler` is the encoder's own."""
    if pooling == "pooler":
        return _own_pooler(output)
    return pool_text(output.last_hidden_state, attention_mask, pooling)


def pool_text(last_hidden_state: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Make one vector of token features; padding never counts.

    Args:
        last_hidden_state (`Tensor`): (B, T, C).
        attention_mask (`Tensor`): (B, T), 1 at tokens and 0 at padding, on either side.
        pooling (`str`): `cls` (the first token), `mean`, `max` or `last_token`.

    Returns:
        `Tensor` of shape (B, C).

    Raises:
        `ValueError`: unknown pooling.
    """
    mask = attention_mask.to(torch.bool)
    positions = torch.arange(mask.shape[1], device=mask.device)
    rows = torch.arange(mask.shape[0], device=mask.device)
    if pooling == "cls":
        return last_hidden_state[rows, positions.masked_fill(~mask, mask.shape[1] - 1).amin(dim=1)]
    if pooling == "last_token":
        return last_hidden_state[rows, positions.masked_fill(~mask, 0).amax(dim=1)]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(last_hidden_state.dtype)
        return (last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if pooling == "max":
        lowest = torch.finfo(last_hidden_state.dtype).min
        return last_hidden_state.masked_fill(~mask.unsqueeze(-1), lowest).amax(dim=1)
    raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(TEXT_POOLINGS)}")


class Skipped(nn.Identity):
    """Stands for a module whose output is not used; its owner may call it with a mask as well."""

    def forward(self, input: Any, *others: Any, **named: Any) -> Any:
        return input


def drop_unused(encoder: PreTrainedModel, unused: tuple[str, ...]) -> None:
    """Take out of `encoder` what its pooled vector does not depend on.

    A parameter that never receives a gradient breaks DistributedDataParallel and costs memory. Modules become
    `Skipped`; a lone parameter (a mask token) becomes a buffer, so that its owner still finds it.
    """
    modules = dict(encoder.named_modules())
    for name in unused:
        owner_name, _, leaf = name.rpartition(".")
        owner = modules[owner_name]
        if name in modules:
            owner.register_module(leaf, Skipped())
        elif leaf in dict(owner.named_parameters(recurse=False)):
            value = owner.get_parameter(leaf).detach()
            delattr(owner, leaf)
            owner.register_buffer(leaf, value)


def _skeleton(config: PreTrainedConfig, device: str = "meta") -> PreTrainedModel:
    with torch.device(device):
        encoder: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    encoder.eval()
    return encoder


def _pooled_text(config: PreTrainedConfig, pooling: str, *, device: str) -> tuple[PreTrainedModel, Tensor]:
    encoder = _skeleton(config, device)
    with torch.device(device):
        mask = torch.ones(2, 4, dtype=torch.long)
        # Without a mask on the meta device, where transformers would have to read its values.
        output = encoder(input_ids=torch.zeros_like(mask), attention_mask=None if device == "meta" else mask)
        return encoder, pool_text_output(output, mask, pooling)


def _vision_shape(encoder: PreTrainedModel, hidden: Tensor, size: tuple[int, int]) -> EncoderOutput:
    """Layout and prefix tokens; the width is found by pooling."""
    if hidden.dim() == 4:
        # transformers keeps channels first; a few of timm's models keep them last.
        first = not isinstance(encoder, TimmWrapperModel) or hidden.shape[1] == encoder.timm_model.num_features
        return EncoderOutput(width=0, layout="channels_first" if first else "channels_last")
    if isinstance(encoder, TimmWrapperModel):
        return EncoderOutput(width=0, prefix_tokens=vars(encoder.timm_model).get("num_prefix_tokens", 0))
    patch = encoder.config.to_dict().get("patch_size")
    patches = (size[0] // patch) * (size[1] // patch) if isinstance(patch, int) else hidden.shape[1]
    return EncoderOutput(width=0, prefix_tokens=max(hidden.shape[1] - patches, 0))


def _outputs_of_blocks(output: Any, shape: EncoderOutput) -> list[Tensor]:
    """(B, patches, width) of each block, the last one left out where the encoder's own output is the same tensor."""
    states: tuple[Tensor, ...] = output.get("hidden_states") or ()
    if not states:
        raise ValueError("the encoder does not give the outputs of its blocks; use another pooling")
    states = states[: -1 if states[-1] is output.last_hidden_state else None]
    # Grids within an encoder have their channels first, whatever comes out of it.
    grid = replace(shape, layout="channels_first", prefix_tokens=0)
    return [patch_tokens(state, grid if state.dim() == 4 else replace(shape, layout="tokens")) for state in states]


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.mean(dim=1) if mask is None else pool_text(tokens, mask, "mean")


def _own_pooler(output: Any) -> Tensor:
    pooled: Tensor | None = output.get("pooler_output")
    if pooled is None:
        raise ValueError("the encoder has no pooler of its own; use another pooling")
    return pooled.flatten(1)


def _unused(encoder: PreTrainedModel, pooled: Tensor) -> tuple[str, ...]:
    """Largest modules, and lone parameters, that `pooled` does not depend on."""
    reached = {id(leaf) for leaf in graph_leaves(pooled)}
    unused = {name for name, parameter in encoder.named_parameters() if id(parameter) not in reached}
    found: list[str] = []
    for name, module in encoder.named_modules():
        inside = [f"{name}.{leaf}" for leaf, _ in module.named_parameters()] if name else []
        if inside and unused.issuperset(inside):
            found.append(name)
            unused.difference_update(inside)
    return (*found, *sorted(unused))


def graph_leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The parameters that a tensor depends on, by autograd's graph."""
    nodes, seen = [tensor.grad_fn], {tensor.grad_fn}
    while nodes:
        node = nodes.pop()
        if isinstance(node, torch.autograd.graph.Node) and node.name().endswith("AccumulateGrad"):
            yield node.variable  # type: ignore[attr-defined]
        for parent, _ in node.next_functions if node is not None else ():
            if parent is not None and parent not in seen:
                seen.add(parent)
                nodes.append(parent)
