"""From `model.lora` of a recipe to the layers of a model that have low-rank changes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.encoders import graph_leaves, native_image_size, run_vision
from mmhf.models.layer_groups import is_lora, layer_of
from mmhf.models.lora import is_adaptable
from mmhf.models.partition import NO_BLOCKS, Partition
from mmhf.models.tower import TowerModel
from mmhf.recipe.sections import LoraSection, ModelSection

TowerModelT = TypeVar("TowerModelT", bound=TowerModel)

_NOT_ADAPTED = tuple(name for name in NO_BLOCKS if name != "final")
_SHOWN = 12


def adapted(model: TowerModelT, section: ModelSection, *, parent: str | Path | None = None) -> TowerModelT:
    """Give a model the low-rank changes that its recipe asks for.

    Args:
        model ([`TowerModel`]): On any device, the meta device too; changed in place.
        section ([`ModelSection`]): Section `model` of the recipe.
        parent (`str` or `Path`, *optional*): The release that the model is from, for messages. Changes that it has
            already must be the recipe's, and training goes on with them.

    Returns:
        [`TowerModel`]: the model.

    Raises:
        `InputError`: see `lora_values`; also, peft is not installed, or the release has other changes.
    """
    values = None if section.lora is None else lora_values(model, section.lora, section.lora_groups())
    if model.config.lora is None:
        if values is not None:
            model.add_lora(values)
    elif values is None:
        raise InputError(
            f"model.lora: absent, but init_from {parent} has low-rank changes apart; set it so, or release that model "
            "with `release.lora: merge`"
        )
    else:
        for key, value in model.config.lora.items():
            if value != values[key]:
                shown, asked = (_listed(each) if key == "modules" else each for each in (value, values[key]))
                raise InputError(f"model.lora: {key} {asked}, but init_from {parent} was trained with {shown}")
    return model


def lora_values(model: TowerModel, section: LoraSection, groups: Sequence[str]) -> dict[str, Any]:
    """Low-rank changes as a config keeps them, each of their layers by name.

    Args:
        model ([`TowerModel`]): The model, which may have them already.
        section ([`LoraSection`]): Section `model.lora` of the recipe.
        groups (`Sequence[str]`): Selectors of parameter groups.

    Raises:
        `InputError`: a selector or a name in `target_modules` chooses no layer, or a name one that is never called.
    """
    partition = Partition.of(model)
    layers = dict(_adaptable(model, partition))
    try:
        chosen = {layer_of(group) for group in partition.select(groups)}
        each = {selector: set(partition.select(selector)) for selector in groups if not selector.startswith("!")}
    except InputError as error:
        raise InputError(f"model.lora.groups: {error}") from error
    inside = {name: module for name, (group, module) in layers.items() if group in chosen}
    bypassed = {
        f"{part}.{name}"
        for part, encoder in model.encoders().items()
        if any(layer.startswith(f"{part}.") for layer in inside)
        for name in bypassed_layers(encoder)
    }
    if section.target_modules == "auto":
        modules = [
            name
            for name, module in inside.items()
            if layers[name][0].rpartition(".")[2] not in _NOT_ADAPTED
            and name not in bypassed
            and _is_smaller(module, section.rank)
        ]
    else:
        modules = _named(section.target_modules, inside, bypassed, groups)
    for selector, own in each.items():
        if not any(layers[name][0] in own for name in modules):
            is_auto = section.target_modules == "auto"
            wanted = f"larger than a change of rank {section.rank}" if is_auto else "named in target_modules"
            raise InputError(
                f"model.lora.groups: {selector!r} has no linear layer or plain convolution {wanted}; leave it out"
                + (", take a lower rank, or name layers in target_modules" if is_auto else "")
            )
    values = {"rank": section.rank, "alpha": section.alpha, "dropout": section.dropout, "dora": section.dora}
    return {**values, "modules": [name for name in layers if name in set(modules)]}


def _named(
    targets: Sequence[str], inside: Collection[str], bypassed: Collection[str], groups: Sequence[str]
) -> list[str]:
    """The layers of the chosen groups, `inside`, whose names end as `target_modules` says."""
    known = _listed(sorted({name.rpartition(".")[2] for name in inside if name not in bypassed})) or "none"
    modules: list[str] = []
    for target in targets:
        found = [name for name in inside if f".{name}".endswith(f".{target}")]
        if not found:
            raise InputError(
                f"model.lora.target_modules: {target!r} names no linear layer or plain convolution of "
                f"{', '.join(groups)}; there are {known}"
            )
        if never_called := [name for name in found if name in bypassed]:
            raise InputError(
                f"model.lora.target_modules: {target!r} names {_listed(never_called)}, whose weights the encoder uses "
                f"without calling the layer, so that a change would take no part; name others, there are {known}"
            )
        modules += [name for name in found if name not in modules]
    return modules


def bypassed_layers(encoder: PreTrainedModel) -> set[str]:
    """Names of an encoder's modules whose parameters it uses without calling them, as timm's BEiT does with `qkv`.

    What is put in place of such a module takes no part. They are found by a pass over the shapes of an encoder of the
    same config; a module that is neither called nor used is none.
    """
    try:
        return _bypassed_layers(encoder, "meta")
    except RuntimeError:  # DeBERTa reads values out of tensors, which the meta device does not have
        return _bypassed_layers(encoder, "cpu")


@torch.enable_grad()
def _bypassed_layers(encoder: PreTrainedModel, device: str) -> set[str]:
    called: set[str] = set()
    with torch.device(device):
        shapes: Any = type(encoder)(copy.deepcopy(encoder.config)).eval()
        for name, module in shapes.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        if shapes.main_input_name == "pixel_values":
            output = run_vision(shapes, torch.zeros(2, 3, *native_image_size(shapes.config)), "pooler")
        else:
            output = shapes(input_ids=torch.zeros(2, 4, dtype=torch.long))
    tensors = [leaf for leaf in pytree.tree_leaves(dict(output)) if isinstance(leaf, Tensor)]
    used = {id(leaf) for tensor in tensors for leaf in graph_leaves(tensor)}
    return {
        name
        for name, module in shapes.named_modules()
        if name not in called and any(id(each) in used for each in module.parameters(recurse=False))
    }


def _adaptable(model: TowerModel, partition: Partition) -> Iterator[tuple[str, tuple[str, nn.Module]]]:
    """Name of each layer of an encoder that can be changed → its parameter group, and itself."""
    groups = {name: group for group, names in partition.items() for name in names}
    for part, encoder in model.encoders().items():
        head = encoder.get_output_embeddings()
        for name, module in encoder.named_modules():
            if module is head or not is_adaptable(module):
                continue
            # A head that is tied to the embeddings has no parameters of its own; the loss may read its weights alone.
            weight = f"{part}.{name}.{next(own for own, _ in module.named_parameters(recurse=False))}"
            if weight in groups and not is_lora(weight):
                yield f"{part}.{name.removesuffix('.base_layer')}", (groups[weight], module)


def _is_smaller(module: nn.Module, rank: int) -> bool:
    """Whether a change of this rank has fewer parameters than the layer's weight."""
    if isinstance(module, nn.Linear):  # whose weights may have few bits, several in a value
        rows, columns = module.out_features, module.in_features
    else:
        weight: Any = module.weight
        rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    return bool(rank * (rows + columns) < rows * columns)


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
