"""Reading a `.pth` file without executing anything in it, and matching its tensors to the parameters of a model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmhf.errors import InputError

Shapes = Mapping[str, Sequence[int]]
"""Name → shape, in the order in which a module registers them."""

_STATE = "state_dict"
_NO_WEIGHTS = ("optimizer", "scheduler", "scaler")
# Positions that older transformers saved, and class weights of a loss, are no weights of a model.
_NO_PARAMETERS = ("*position_ids", "*class_weights_tensor", "criterion.*", "*.criterion.*")
_SHOWN = 6


class SavedSettings:
    """Stands for the class of a settings object that a checkpoint holds, so that its fields can be read."""


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a number that NumPy computed, such as an F1, is made of in a pickle; none of it runs code."""
    scalar = np.float64(0.0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")}
    named: list[tuple[Any, str]] = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    return [*named, (np.dtype, "numpy.dtype"), *((kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds)]


class Linear(NamedTuple):
    """A linear layer of a checkpoint: names of its tensors, and its widths."""

    weight: str
    bias: str | None
    inputs: int
    outputs: int


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path (`Path`): The file.
        values (`dict`): All that is no weight, such as `epoch` and `num_classes`.
        weights (`dict[str, Tensor]`): By the names that they were saved under; they stay on disk until they are read.
        used (`set[str]`): Names of those that have found their place.
        notes (`list[str]`): What was matched to what, for the user.
    """

    path: Path
    values: dict[str, Any]
    weights: dict[str, Tensor]
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The program's own settings, as far as they were saved."""
        found = self.values.get("config") or self.values.get("hyperparameters") or {}
        return dict(found) if isinstance(found, Mapping) else dict(vars(found))

    def left(self) -> list[str]:
        """Names of the weights that have no place yet, in the order in which they were saved."""
        return [
            name
            for name in self.weights
            if name not in self.used and not any(fnmatchcase(name, pattern) for pattern in _NO_PARAMETERS)
        ]

    def locate(self, shapes: Shapes) -> dict[str, str] | None:
        """Find a module: by the ends of its names below one prefix, else by the order of its shapes.

        Returns:
            `dict[str, str]`, or `None`: name in `shapes` → name in the checkpoint.
        """
        left = self.left()
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        own = {name: tuple(self.weights[name].shape) for name in left}
        first = next(iter(wanted))
        for prefix in (name.removesuffix(first) for name in left if name == first or name.endswith(f".{first}")):
            if all(own.get(prefix + name) == shape for name, shape in wanted.items()):
                return {name: prefix + name for name in wanted}
        sizes, sequence = list(own.values()), list(wanted.values())
        for start in range(len(left) - len(sequence) + 1):
            if sizes[start] == sequence[0] and sizes[start : start + len(sequence)] == sequence:
                return dict(zip(wanted, left[start : start + len(sequence)], strict=True))
        return None

    def linears(self) -> list[list[Linear]]:
        """The linear layers that have no place yet; those of one `Sequential` are together."""
        groups: dict[str, list[Linear]] = {}
        for name in self.left():
            module, _, leaf = name.rpartition(".")
            if leaf != "weight" or self.weights[name].dim() != 2:
                continue
            bias = f"{module}.bias" if f"{module}.bias" in self.weights else None
            outputs, inputs = self.weights[name].shape
            parent, _, number = module.rpartition(".")
            groups.setdefault(parent if number.isdigit() else module, []).append(Linear(name, bias, inputs, outputs))
        return list(groups.values())

    def take(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Tensors by their new names, which then have found their place."""
        self.used.update(names.values())
        return {new: self.weights[old] for new, old in names.items()}

    def take_linear(self, linear: Linear, target: str) -> dict[str, Tensor]:
        """A linear layer under its new name, with a bias of zero where it had none."""
        taken = self.take(
            {f"{target}.weight": linear.weight, **({f"{target}.bias": linear.bias} if linear.bias else {})}
        )
        return taken if linear.bias else {**taken, f"{target}.bias": torch.zeros(linear.outputs)}

    def check_used(self, allowed: Collection[str]) -> None:
        """Refuse a checkpoint of which something is left over.

        Args:
            allowed (`Collection[str]`): Names or globs of what may be.

        Raises:
            InputError: It lists what is left.
        """
        left = [name for name in self.left() if not any(fnmatchcase(name, pattern) for pattern in allowed)]
        if left:
            raise InputError(
                f"{self.path}: {len(left)} tensors have no place in the model: {listed(left)}; if they may be lost, "
                f"say so with --allow-missing {left[0]}"
            )


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed, and weights stay on disk until they are used.

    Raises:
        InputError: There is no such file, it is cut short, holds code, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    content = _load(path)
    values = dict(content) if isinstance(content, Mapping) else {}
    weights = _weights_in(values)
    if not weights:
        raise InputError(f"{path}: no weights in it; expected what torch.save made of a state_dict")
    kept = {key: value for key, value in values.items() if not (_is_state(value) or isinstance(value, Tensor))}
    return Checkpoint(path, kept, weights)


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    try:
        stand_ins = _numpy_scalars()
        if is_zip:
            # A settings object is read field by field, without its class; any other class is refused below.
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            names = [name for name in unknown if name.rpartition(".")[2] in ("Config", "TrainingConfig", "Args")]
            stand_ins += [(SavedSettings, name) for name in names]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "GLOBAL " in str(error):
            code = str(error).partition("GLOBAL ")[2].split()[0]
            raise InputError(
                f"{path}: cannot be read: it holds code or objects ({code}), which are not run"
            ) from error
        raise InputError(f"{path}: cannot be read: no file of torch.save") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InputError(f"{path}: cannot be read: no whole file of torch.save ({reason})") from error


def _weights_in(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """All weights of a checkpoint: its state dict, several under their names, or the file itself."""
    if _is_state(values):
        return dict(values)
    states = {
        key: value
        for key, value in values.items()
        if _is_state(value) and not any(part in key for part in _NO_WEIGHTS)
    }
    if len(states) == 1:
        return dict(next(iter(states.values())))
    return {
        f"{key.removesuffix(_STATE).rstrip('_') or key}.{name}": tensor
        for key, state in states.items()
        for name, tensor in state.items()
    }


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(each, Tensor) for each in value.values())
