"""From `model.lora` of a recipe to the layers of a model that have low-rank changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mmhf.errors import InputError
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
        `InputError`: a selector or a name in `target_modules` chooses no layer, peft is not installed, or the release
            has other changes.
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
        `InputError`: a selector or a name in `target_modules` chooses no layer.
    """
    partition = Partition.of(model)
    layers = dict(_adaptable(model, partition))
    try:
        chosen = {layer_of(group) for group in partition.select(groups)}
        each = {selector: set(partition.select(selector)) for selector in groups if not selector.startswith("!")}
    except InputError as error:
        raise InputError(f"model.lora.groups: {error}") from error
    inside = {name: module for name, (group, module) in layers.items() if group in chosen}
    if section.target_modules == "auto":
        modules = [
            name
            for name, module in inside.items()
            if layers[name][0].rpartition(".")[2] not in _NOT_ADAPTED and _is_smaller(module, section.rank)
        ]
    else:
        modules = []
        for target in section.target_modules:
            found = [name for name in inside if f".{name}".endswith(f".{target}")]
            if not found:
                known = _listed(sorted({name.rpartition(".")[2] for name in inside}))
                raise InputError(
                    f"model.lora.target_modules: {target!r} names no linear layer or plain convolution of "
                    f"{', '.join(groups)}; there are {known or 'none'}"
                )
            modules += [name for name in found if name not in modules]
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
