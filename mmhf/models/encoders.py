"""What every family needs to know of an encoder: its output, its unused parameters, its layer groups, its pooling.

Depends on torch, transformers and timm only, so that a release can carry this file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

VisionPooling = Literal["avg", "max", "concat", "cls", "pooler"]
TextPooling = Literal["cls", "mean", "max", "last_token", "pooler"]
VISION_POOLINGS: tuple[str, ...] = get_args(VisionPooling)
TEXT_POOLINGS: tuple[str, ...] = get_args(TextPooling)

# timm's mark for "belongs to the group before me": norms and head convolutions after the last block.
_TIMM_PREVIOUS_GROUP = 99999
_EMBEDDING_NAME = re.compile(r"embed|position|relative|token")


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


def native_image_size(config: PreTrainedConfig) -> int:
    """Side in pixels of the square images that an encoder was made for (224 where its config does not say)."""
    values = config.to_dict()
    if config.model_type == "timm_wrapper":
        return int((values.get("pretrained_cfg") or {}).get("input_size", (3, 224, 224))[-1])
    size = values.get("image_size") or 224
    return int(size if isinstance(size, int) else size[0])


def describe_vision(config: PreTrainedConfig, pooling: str) -> EncoderOutput:
    """Read an image encoder's output from its config alone; no weights are made.

    Raises:
        `ValueError`: the encoder has no such pooling.
    """
    encoder = _on_meta(config)
    size = native_image_size(config)
    with torch.device("meta"):
        output = run_vision(encoder, torch.zeros(2, 3, size, size), pooling)
    hidden = output.last_hidden_state
    if hidden.dim() == 4:
        width = _channel_width(encoder)
        layout: Literal["channels_first", "channels_last"] = (
            "channels_first" if hidden.shape[1] == width else "channels_last"
        )
        shape = EncoderOutput(width=0, layout=layout)
    else:
        shape = EncoderOutput(width=0, prefix_tokens=_prefix_tokens(encoder, hidden.shape[1], size))
    pooled = pool_vision(output, pooling, shape)
    return EncoderOutput(pooled.shape[-1], shape.layout, shape.prefix_tokens, _unused(encoder, pooled))


def describe_text(config: PreTrainedConfig, pooling: str) -> EncoderOutput:
    """Read a text encoder's output from its config alone; no weights are made.

    Raises:
        `ValueError`: the encoder has no such pooling.
    """
    encoder = _on_meta(config)
    with torch.device("meta"):
        input_ids = torch.zeros(2, 4, dtype=torch.long)
        pooled = pool_text_output(encoder(input_ids=input_ids), torch.ones(2, 4, dtype=torch.long), pooling)
    return EncoderOutput(pooled.shape[-1], unused=_unused(encoder, pooled))


def run_vision(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str) -> Any:
    """Run an image encoder and no more of its head than `pooling` needs."""
    if isinstance(encoder, TimmWrapperModel):
        return encoder(pixel_values=pixel_values, do_pooling=pooling == "pooler")
    if pixel_values.shape[-1] != native_image_size(encoder.config) and _interpolates(type(encoder)):
        return encoder(pixel_values=pixel_values, interpolate_pos_encoding=True)
    return encoder(pixel_values=pixel_values)


def pool_vision(output: Any, pooling: str, shape: EncoderOutput) -> Tensor:
    """Make one vector of a grid of features or of patch tokens.

    Args:
        output: An encoder's output with `last_hidden_state`, and `pooler_output` for `pooling="pooler"`.
        pooling (`str`): `avg` or `max` over the patches (class and register tokens left out), `concat` of the two,
            `cls` (the first token) or `pooler` (the encoder's own).
        shape (`EncoderOutput`): Layout of `last_hidden_state` and its number of prefix tokens.

    Returns:
        `Tensor` of shape (B, width).

    Raises:
        `ValueError`: the encoder has no such pooling.
    """
    if pooling == "pooler":
        return _own_pooler(output)
    hidden = output.last_hidden_state
    if pooling == "cls":
        if shape.layout != "tokens" or shape.prefix_tokens == 0:
            raise ValueError("pooling 'cls' needs an encoder with a class token; use 'avg'")
        return hidden[:, 0]
    if shape.layout == "channels_first":
        patches = hidden.flatten(2).transpose(1, 2)
    elif shape.layout == "channels_last":
        patches = hidden.flatten(1, 2)
    else:
        patches = hidden[:, shape.prefix_tokens :]
    if pooling == "avg":
        return patches.mean(dim=1)
    if pooling == "max":
        return patches.amax(dim=1)
    if pooling == "concat":
        return torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=-1)
    raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(VISION_POOLINGS)}")


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


def drop_unused(encoder: PreTrainedModel, unused: tuple[str, ...]) -> None:
    """Take out of `encoder` what its pooled vector does not depend on.

    A parameter that never receives a gradient breaks DistributedDataParallel and costs memory. Modules become
    `nn.Identity`; a lone parameter (a mask token) becomes a buffer, so that its owner still finds it.
    """
    modules = dict(encoder.named_modules())
    for name in unused:
        owner_name, _, leaf = name.rpartition(".")
        owner = modules[owner_name]
        if name in modules:
            owner.register_module(leaf, nn.Identity())
        elif leaf in dict(owner.named_parameters(recurse=False)):
            value = owner.get_parameter(leaf).detach()
            delattr(owner, leaf)
            owner.register_buffer(leaf, value)


def layer_groups(encoder: PreTrainedModel) -> dict[str, list[str]]:
    """Partition an encoder's parameters into layer groups, from input to output.

    Returns:
        `dict[str, list[str]]`: group → parameter names relative to `encoder`; each parameter once. timm: `stem`,
        `stages.I` (`layers.I` where all blocks keep one resolution), `final`; transformers: `embeddings`,
        `layers.I` or `stages.I`, `final`. Empty groups are left out.
    """
    if isinstance(encoder, TimmWrapperModel):
        return _timm_groups(encoder)
    return _transformers_groups(encoder)


def _on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        encoder = AutoModel.from_config(config, dtype=torch.float32)
    return encoder.eval()


def _interpolates(encoder_class: type[PreTrainedModel]) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(encoder_class.forward).parameters


def _channel_width(encoder: PreTrainedModel) -> int:
    if isinstance(encoder, TimmWrapperModel):
        return int(encoder.timm_model.num_features)
    values = encoder.config.to_dict()
    return int(values["hidden_sizes"][-1] if "hidden_sizes" in values else values["hidden_size"])


def _prefix_tokens(encoder: PreTrainedModel, tokens: int, size: int) -> int:
    if isinstance(encoder, TimmWrapperModel):
        return int(vars(encoder.timm_model).get("num_prefix_tokens", 0))
    patch = encoder.config.to_dict().get("patch_size")
    if not isinstance(patch, int):
        return 0
    return max(tokens - (size // patch) ** 2, 0)


def _own_pooler(output: Any) -> Tensor:
    pooled = output.get("pooler_output")
    if pooled is None:
        raise ValueError("the encoder has no pooler of its own; use another pooling")
    return pooled.flatten(1)


def _unused(encoder: PreTrainedModel, pooled: Tensor) -> tuple[str, ...]:
    """Largest modules, and lone parameters, that `pooled` does not depend on."""
    reached = {id(leaf) for leaf in _graph_leaves(pooled)}
    unused = {name for name, parameter in encoder.named_parameters() if id(parameter) not in reached}
    found: list[str] = []
    for name, module in encoder.named_modules():
        inside = [f"{name}.{leaf}" for leaf, _ in module.named_parameters()] if name else []
        if inside and unused.issuperset(inside):
            found.append(name)
            unused.difference_update(inside)
    return (*found, *sorted(unused))


def _graph_leaves(tensor: Tensor) -> Iterator[Tensor]:
    nodes, seen = [tensor.grad_fn], {tensor.grad_fn}
    while nodes:
        node = nodes.pop()
        if isinstance(node, torch.autograd.graph.Node) and node.name().endswith("AccumulateGrad"):
            yield node.variable  # type: ignore[attr-defined]
        for parent, _ in node.next_functions if node is not None else ():
            if parent is not None and parent not in seen:
                seen.add(parent)
                nodes.append(parent)


def _timm_groups(encoder: TimmWrapperModel) -> dict[str, list[str]]:
    model = encoder.timm_model
    keys = {name: _timm_key(name, model.group_matcher(coarse=True)) for name, _ in model.named_parameters()}
    layers = sorted({key for key in keys.values() if key[0] == 1})
    prefix = "layers" if len({info["reduction"] for info in model.feature_info}) == 1 else "stages"
    groups: dict[str, list[str]] = {"stem": []}
    groups.update({f"{prefix}.{index}": [] for index in range(len(layers))})
    groups["final"] = []
    for name, key in keys.items():
        group = {0: "stem", 2: "final"}.get(int(key[0])) or f"{prefix}.{layers.index(key)}"
        groups[group].append(f"timm_model.{name}")
    return {group: names for group, names in groups.items() if names}


def _timm_key(name: str, matcher: Any) -> tuple[float, ...]:
    """(0,) for the stem, (1, ...) for a block, (2,) for what follows the blocks."""
    if callable(matcher):
        order = matcher(name)
        return (1.0, *map(float, order if isinstance(order, tuple) else (order,)))
    for group, spec in matcher.items():
        for pattern, suffix in spec if isinstance(spec, (list, tuple)) else [(spec, None)]:
            match = re.match(pattern, name) if pattern else None
            if match is None:
                continue
            if group == "stem":
                return (0.0,)
            if suffix == (_TIMM_PREVIOUS_GROUP,):
                return (2.0,)
            return (1.0, *(float(number) for number in match.groups() if number is not None), *(suffix or ()))
    return (2.0,)


def _transformers_groups(encoder: PreTrainedModel) -> dict[str, list[str]]:
    path, stack = max(
        ((name, module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)),
        key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()),
        default=("", nn.ModuleList()),
    )
    prefix = "stages" if path.rpartition(".")[2] == "stages" else "layers"
    groups: dict[str, list[str]] = {"embeddings": []}
    groups.update({f"{prefix}.{index}": [] for index in range(len(stack))})
    groups["final"] = []
    seen_stack = False
    for name, _ in encoder.named_parameters():
        if path and name.startswith(f"{path}."):
            seen_stack = True
            group = f"{prefix}.{name[len(path) + 1 :].partition('.')[0]}"
        elif seen_stack and not _EMBEDDING_NAME.search(name):
            group = "final"
        else:
            group = "embeddings"
        groups[group].append(name)
    return {group: names for group, names in groups.items() if names}
