"""From a checkpoint to a release: the way that all predecessors go."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from mmhf.conversion.checkpoint import Checkpoint, listed
from mmhf.errors import InputError
from mmhf.recipe import ResolvedRecipe, load_recipe


@dataclass(frozen=True)
class Options:
    """What a user says of a checkpoint that its tensors do not tell.

    Attributes:
        vision, text (`str`, *optional*): Names of its encoders; of a captioner, `text` is the language model.
        tokenizer (`str`, *optional*): A tokenizer's folder or Hub name.
        labels (`tuple[str, ...]`): Names of its classes in the order of their ids; empty: as saved, else numbers.
        embeddings (`Path`, *optional*): Its parquet file of text embeddings.
        texts (`Path`, *optional*): The table whose texts these are of, row by row.
        metadata (`Path`, *optional*): A captioner's `training_metadata_*.json`.
        include_frozen (`bool`): Captioners: store CLIP and Qwen, too.
        allow_missing (`tuple[str, ...]`): Names or globs of tensors that may be missing or left over.
        overrides (`tuple[str, ...]`): Changes to the recipe, as `mmhf train` takes them.
    """

    vision: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    labels: tuple[str, ...] = ()
    embeddings: Path | None = None
    texts: Path | None = None
    metadata: Path | None = None
    include_frozen: bool = False
    allow_missing: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass
class Parts:
    """A model in parts.

    Attributes:
        model_class (`type`): Of the family.
        config (`PreTrainedConfig`): Its config.
        tensors (`dict[str, Tensor]`): By the names that the model gives them.
        processor (`Any`): What makes its inputs.
        absent (`tuple[str, ...]`): Beginnings of the names of what the release only refers to.
        generation_config (`GenerationConfig`, *optional*): A captioner's.
    """

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    processor: Any
    absent: tuple[str, ...] = ()
    generation_config: GenerationConfig | None = None


@dataclass
class Converted:
    """A checkpoint as a model of mmhf.

    Attributes:
        resolved ([`ResolvedRecipe`]): A recipe with the program's settings.
        model (`PreTrainedModel`): Not to be run before it was saved and loaded: its weights lie in the checkpoint.
        processor (`Any`): What makes its inputs.
        numbers (`dict[str, dict[str, float]]`): Split → metric → what the program measured.
        notes (`list[str]`): What was matched to what.
    """

    resolved: ResolvedRecipe
    model: PreTrainedModel
    processor: Any
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Predecessor(ABC):
    """A hand-written program whose checkpoints can be converted.

    Attributes:
        name (`str`): What `--from` calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the names in a checkpoint say that this program saved it."""

    @abstractmethod
    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        """A recipe with the program's settings, as far as the checkpoint tells; defaults are its document's.

        Raises:
            InputError: The checkpoint is not of this program.
        """

    @abstractmethod
    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        """The model, once the user has had a word in the recipe.

        Raises:
            InputError: A part is not in the checkpoint, or has other shapes.
        """

    def numbers(self, checkpoint: Checkpoint, options: Options) -> dict[str, dict[str, float]]:
        """Split → metric → what the program measured, as far as it was saved."""
        return {}


def convert(predecessor: Predecessor, checkpoint: Checkpoint, options: Options) -> Converted:
    """Make a model of a checkpoint; its weights are read when the model is saved, once.

    Raises:
        InputError: Something is missing or left over, or the recipe's changes do not fit.
    """
    values = predecessor.recipe(checkpoint, options)
    resolved = _resolve(values, options.overrides)
    parts = predecessor.parts(checkpoint, resolved, options)
    checkpoint.check_used(options.allow_missing)
    with torch.device("meta"):
        model = parts.model_class(parts.config)
    _fill(model, parts, checkpoint, options.allow_missing)
    if parts.generation_config is not None:
        model.generation_config = parts.generation_config
    numbers = predecessor.numbers(checkpoint, options)
    return Converted(resolved, model.eval(), parts.processor, numbers, checkpoint.notes)


def number_of(checkpoint: Checkpoint, key: str) -> float | None:
    """A number among a checkpoint's values."""
    value = checkpoint.values.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def class_names(checkpoint: Checkpoint, count: int, options: Options) -> list[str]:
    """Names of the classes: the user's, the checkpoint's own, or numbers.

    Raises:
        InputError: They are more or fewer than the classifier tells apart.
    """
    saved = checkpoint.values.get("classes") or checkpoint.values.get("class_names")
    names = [str(name) for name in options.labels or saved or range(count)]
    if len(names) != count:
        raise InputError(
            f"{checkpoint.path}: the classifier tells {count} classes apart, but {len(names)} names are given "
            f"({listed(names)})"
        )
    if not options.labels and not saved:
        checkpoint.notes.append(f"{count} classes without names, called 0 to {count - 1}; --labels names them")
    return names


def _resolve(values: dict[str, Any], overrides: Sequence[str]) -> ResolvedRecipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "converted.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return load_recipe(path, list(overrides))


@torch.no_grad()
def _fill(model: PreTrainedModel, parts: Parts, checkpoint: Checkpoint, allowed: Sequence[str]) -> None:
    wanted = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(parts.absent or ("\0",))
    }
    wrong = [
        f"{name} is {tuple(parts.tensors[name].shape)} and should be {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in parts.tensors and parts.tensors[name].shape != tensor.shape
    ]
    missing = [name for name in wanted if name not in parts.tensors]
    refused = [name for name in missing if not any(fnmatchcase(name, pattern) for pattern in allowed)]
    if wrong or refused:
        what = "of other shapes: " + listed(wrong) if wrong else "missing: " + listed(refused)
        raise InputError(f"{checkpoint.path}: {what}" + ("" if wrong else "; --allow-missing NAME starts one anew"))
    started = {name: torch.zeros(wanted[name].shape, dtype=wanted[name].dtype) for name in missing}
    for value in started.values():
        if value.dim() > 1:
            nn.init.normal_(value, std=0.02)
    tensors = {name: parts.tensors[name].to(tensor.dtype) for name, tensor in wanted.items() if name in parts.tensors}
    model.load_state_dict({**tensors, **started}, strict=False, assign=True)
    model.tie_weights()
