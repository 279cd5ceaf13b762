"""The one ordered partition of a model's parameters that freezing, rates, decay, schedules and the plan read."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.layer_groups import groups_with_head, layer_of, modules_outside

NO_BLOCKS = ("stem", "embeddings", "final")
"""What `first N` and `last N` do not count: what comes before an encoder's blocks, and what follows them."""
_COUNTED = re.compile(r"(?P<end>first|last)\s+(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)")


@runtime_checkable
class HasParameterGroups(Protocol):
    """A model that names its own parameter groups."""

    def parameter_groups(self) -> Mapping[str, Sequence[str]]:
        """Ordered group name → parameter names; each parameter once."""
        ...


class Partition(Mapping[str, tuple[str, ...]]):
    """Ordered mapping from group name to parameter names, each parameter in exactly one group.

    Args:
        groups (`Mapping[str, Sequence[str]]`): Ordered group name → parameter names.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self._groups = {group: tuple(names) for group, names in groups.items()}
        self._group_of: dict[str, str] = {}
        for group, names in self._groups.items():
            for name in names:
                if name in self._group_of:
                    raise ValueError(f"parameter {name} is in the groups {self._group_of[name]} and {group}")
                self._group_of[name] = group

    @classmethod
    def of(cls, model: PreTrainedModel) -> Partition:
        """Partition of a model: its own `parameter_groups()`, else the layer groups of an encoder and its head.

        Raises:
            `ValueError`: a parameter is in no group, in two, or does not exist. A tied tensor counts once, under the
                name that `named_parameters()` gives it.
        """
        groups = model.parameter_groups() if isinstance(model, HasParameterGroups) else groups_with_head(model)
        partition = cls(groups)
        names = {name for name, _ in model.named_parameters()}
        if missing := sorted(names - partition._group_of.keys()):
            raise ValueError(f"parameters in no group: {', '.join(missing)}")
        if unknown := sorted(partition._group_of.keys() - names):
            raise ValueError(f"groups name parameters that the model lacks: {', '.join(unknown)}")
        return partition

    def __getitem__(self, group: str) -> tuple[str, ...]:
        return self._groups[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"Partition({', '.join(self)})"

    def group_of(self, parameter: str) -> str:
        """Name of the group that holds a parameter."""
        return self._group_of[parameter]

    def select(self, selectors: str | Sequence[str]) -> tuple[str, ...]:
        """Groups that selectors name, in the partition's order.

        Args:
            selectors (`str` or `list[str]`): Each a group (`head`), a prefix (`vision`), a glob (`vision.stages.*`),
                `PREFIX:last N`, `PREFIX:last N%`, `PREFIX:first N`, or `all`. `!SELECTOR` takes away from what the
                selectors before it chose (from all groups when it comes first). N counts blocks, and a share of them
                is rounded up: `final`, behind the last block, comes along with `last`, and `stem` or `embeddings`,
                before the first, with `first`. `vision:last 2` are layers' own weights, `vision.lora:last 2` their
                low-rank changes; `vision` is both.

        Raises:
            `InputError`: a selector matches nothing, or nothing is left.
        """
        chosen: set[str] = set()
        listed = [selectors] if isinstance(selectors, str) else list(selectors)
        for position, selector in enumerate(listed):
            if selector.startswith("!"):
                chosen = (set(self) if position == 0 else chosen).difference(self._match(selector[1:].strip()))
            else:
                chosen.update(self._match(selector.strip()))
        if not chosen:
            raise InputError(f"the selectors {', '.join(map(repr, listed)) or '(none)'} leave no group to choose")
        return tuple(group for group in self if group in chosen)

    def parameters_of(self, groups: Collection[str]) -> list[str]:
        """Parameter names of some groups, in the partition's order."""
        return [name for group in self if group in groups for name in self[group]]

    def counts(self, model: nn.Module) -> dict[str, int]:
        """Number of scalar parameters by group; the model may be on the meta device."""
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        return {group: sum(sizes[name] for name in names) for group, names in self.items()}

    def frozen_modules(self, model: nn.Module, trained: Collection[str]) -> list[tuple[str, nn.Module]]:
        """Largest modules that belong wholly to groups outside `trained`; they run in eval mode.

        A module without parameters inside a partly trained one belongs to the group of the nearest sibling with
        parameters before it, else after it, in registration order.

        Args:
            model (`nn.Module`): The model, or one with the same names.
            trained (`Collection[str]`): Groups that train.

        Returns:
            `list[tuple[str, nn.Module]]`: Names and modules, none inside another.
        """
        group_of = {id(parameter): self._group_of[name] for name, parameter in model.named_parameters()}
        return list(modules_outside(model, group_of, frozenset(trained)))

    def _match(self, selector: str) -> list[str]:
        prefix, counted, amount = selector.partition(":")
        groups = self._under(prefix.strip(), selector)
        if not counted:
            return groups
        match = _COUNTED.fullmatch(amount.strip())
        if match is None:
            raise InputError(
                f"selector {selector!r}: after the colon comes 'last N', 'last N%', 'first N' or 'first N%'"
            )
        groups = [group for group in groups if layer_of(group) == group] or groups
        blocks = [index for index, group in enumerate(groups) if group.rpartition(".")[2] not in NO_BLOCKS]
        blocks = blocks or list(range(len(groups)))
        count = _count(match, len(blocks), selector)
        return groups[: blocks[count - 1] + 1] if match["end"] == "first" else groups[blocks[-count] :]

    def counted(self, selectors: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The groups that each selector with a number in it names, such as `vision:last 2`."""
        listed = [selectors] if isinstance(selectors, str) else selectors
        return {selector: tuple(self._match(selector.lstrip("! "))) for selector in listed if ":" in selector}

    def _under(self, prefix: str, selector: str) -> list[str]:
        if prefix == "all":
            return list(self)
        groups = [
            group
            for group in self
            if group == prefix or group.startswith(f"{prefix}.") or fnmatch.fnmatchcase(group, prefix)
        ]
        if groups and prefix:
            return groups
        prefixes = {".".join(group.split(".")[:depth]) for group in self for depth in range(1, group.count(".") + 2)}
        near = difflib.get_close_matches(prefix, sorted(prefixes | {"all"}), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the groups are {', '.join(self)}"
        raise InputError(f"selector {selector!r} matches no parameter group, {hint}")


def _count(match: re.Match[str], available: int, selector: str) -> int:
    number = float(match["number"])
    if match["percent"]:
        # Rounded first, so that 30% of 10 is 3 and not, by the last bit of 0.3 * 10, 4.
        count = math.ceil(round(number * available / 100, 6)) if number <= 100 else available + 1
    elif number.is_integer():
        count = int(number)
    else:
        raise InputError(f"selector {selector!r}: {match['number']} is not a whole number of blocks")
    if not 1 <= count <= available:
        raise InputError(f"selector {selector!r} asks for {match[0]} of {available} blocks")
    return count
