"""An encoder's parameters in layer groups, from input to output.

Depends on torch, transformers, timm and `torchvision_encoder` only, so that a release can carry this file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn
from transformers import PreTrainedModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel

from mmhf.models.torchvision_encoder import TorchvisionConfig, torchvision_groups

# timm's mark for "belongs to the group before me": norms and head convolutions after the last block.
_TIMM_PREVIOUS_GROUP = 99999
LORA = "lora"
"""Between a tower and its layer in the name of a group of low-rank changes, such as `vision.lora.layers.5`."""
_LORA_MARK = ".lora_"
_EMBEDDING_NAME = re.compile(r"embed|position|relative|token")


class _TimmModel(Protocol):
    def get_classifier(self) -> nn.Module | Collection[nn.Module]: ...


@runtime_checkable
class _LayeredTimmModel(Protocol):
    feature_info: Any

    def named_parameters(self) -> Any: ...

    def group_matcher(self, coarse: bool = False) -> Any: ...


def layer_groups(encoder: PreTrainedModel) -> dict[str, list[str]]:
    """Partition an encoder's parameters into layer groups, from input to output.

    Returns:
        `dict[str, list[str]]`: group → parameter names relative to `encoder`; each parameter once. timm: `stem`,
        `stages.I` (`layers.I` where all blocks keep one resolution), `final`; torchvision: `stem`, its own blocks,
        `final`; transformers: `embeddings`, `layers.I` or `stages.I`, `final`. Empty groups are left out.

    Raises:
        `ValueError`: timm does not say how its model is layered.
    """
    if isinstance(encoder, TimmWrapperPreTrainedModel):
        return _timm_groups(encoder)
    if encoder.config.model_type == TorchvisionConfig.model_type:
        return torchvision_groups(encoder)
    return _transformers_groups(encoder)


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to a low-rank change of a layer."""
    return _LORA_MARK in name


def layer_of(group: str) -> str:
    """The group of the layer that a group of low-rank changes belongs to; of any other group, itself.

    `vision.lora.layers.5` → `vision.layers.5`.
    """
    tower, _, rest = group.partition(".")
    return f"{tower}.{rest.removeprefix(f'{LORA}.')}" if rest.startswith(f"{LORA}.") else group


def groups_with_head(model: PreTrainedModel) -> dict[str, list[str]]:
    """`layer_groups`, with what a stock model for a task has beside its encoder as the last group, `head`.

    So stages can name the fresh head of any `AutoModelFor…Classification`, of transformers and of timm.
    """
    head = _head_parameters(model)
    groups = {group: [name for name in names if name not in head] for group, names in layer_groups(model).items()}
    return {group: names for group, names in {**groups, "head": sorted(head)}.items() if names}


def _head_parameters(model: PreTrainedModel) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if isinstance(model, TimmWrapperPreTrainedModel):
        classifier = cast(_TimmModel, model.timm_model).get_classifier()
        modules = classifier if isinstance(classifier, tuple | list) else (classifier,)
        found = [parameter for each in modules if isinstance(each, nn.Module) for parameter in each.parameters()]
        return {names[id(parameter)] for parameter in found}
    base = model.base_model
    if base is model:
        return set()
    inside = {id(parameter) for parameter in base.parameters()}
    return {name for key, name in names.items() if key not in inside}


def _timm_groups(encoder: TimmWrapperPreTrainedModel) -> dict[str, list[str]]:
    model = encoder.timm_model
    if not isinstance(model, _LayeredTimmModel):
        raise ValueError(f"timm does not say how {encoder.config.architecture} is layered; choose another backbone")
    matcher = model.group_matcher(coarse=True)
    keys = {name: _timm_key(name, matcher) for name, _ in model.named_parameters()}
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


def modules_outside(
    module: nn.Module, group_of: Mapping[int, str], chosen: Collection[str], name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Largest modules that belong wholly to groups outside `chosen`, none inside another.

    A module without parameters inside a module with some in `chosen` belongs to the group of the nearest sibling with
    parameters before it, else after it, in registration order.

    Args:
        module (`nn.Module`): What to look through.
        group_of (`Mapping[int, str]`): `id` of each parameter → its group.
        chosen (`Collection[str]`): Groups.
        name (`str`): Of `module`, put before the names of those found.
    """
    groups = _groups_in(module, group_of)
    if groups and not any(group in chosen for group in groups):
        yield name, module
        return
    children = list(module.named_children())
    spans = [_groups_in(child, group_of) for _, child in children]
    for index, (child_name, child) in enumerate(children):
        path = f"{name}.{child_name}" if name else child_name
        if spans[index]:
            yield from modules_outside(child, group_of, chosen, path)
            continue
        before = [span[-1] for span in spans[:index] if span]
        after = [span[0] for span in spans[index + 1 :] if span]
        neighbour = before[-1] if before else after[0] if after else groups[0] if groups else None
        if neighbour is not None and neighbour not in chosen:
            yield path, child


def _groups_in(module: nn.Module, group_of: Mapping[int, str]) -> list[str]:
    return [group_of[id(parameter)] for parameter in module.parameters()]
