"""Averages of models that were trained alike: their weights, tensor by tensor, and what they must agree in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmhf.damage import is_run_file, mark_complete
from mmhf.errors import InputError
from mmhf.files import (
    CHANGES_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    LINEAGE_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    read_json_object,
    recipe_of_model,
    write_json,
)
from mmhf.hub.manifest import released_files, soup_names
from mmhf.hub.releases import ResolvedModel

_MAY_DIFFER = {
    *("transformers_version", "_name_or_path", "auto_map", "dtype"),
    *("class_weights", "label_smoothing", "focal_gamma", "logit_adjustment", "auxiliary_weights"),
    *("dropout", "head_dropout", "projector_dropout"),
    *("calibration_temperature", "abstain_below", "views"),
}
"""Keys of a config that change nothing of what its tensors compute."""
_INPUTS = ("processor_config.json", "preprocessor_config.json", "tokenizer.json")
_NOT_KEPT = (METRICS_FILE, EVALUATION_FILE, CHANGES_FILE, f"{WEIGHTS_FILE}.index.json")
_SHOWN = 60


@dataclass(frozen=True)
class Ingredient:
    """A model that goes into an average, and its share."""

    model: ResolvedModel
    weight: float

    def describe(self) -> dict[str, Any]:
        """What the average's lineage says of it."""
        reference = self.model.reference
        named = {"repo": reference.repo, "revision": reference.revision, "commit": reference.commit}
        return {**named, "weight": self.weight}


def refuse_misfits(models: Sequence[ResolvedModel]) -> None:
    """Check that models can be averaged: same architecture and classes, same inputs, same tensors.

    Raises:
        InputError: Names each model that does not fit the first one, and why, one a line.
    """
    first, *others = models
    problems = [f"{other.reference}: {why}" for other in others if (why := _misfit(first, other)) is not None]
    if problems:
        raise InputError("\n".join(f"{problem}; it cannot be averaged with {first.reference}" for problem in problems))


def write_average(folder: Path, ingredients: Sequence[Ingredient], *, fingerprint: Mapping[str, str]) -> None:
    """Fill an empty folder with the average of models, as a run folder that can be evaluated and released.

    Recipe, processor and config are the first model's; temperature and abstention, which were fitted to its own
    logits, are left out. Each tensor of each file is read once, and no two models are in memory at a time.

    Args:
        folder (`Path`): An empty folder.
        ingredients (`Sequence[Ingredient]`): What `refuse_misfits` has passed; their weights add up to 1.
        fingerprint (`Mapping[str, str]`): Split → content hash of the rows that all of them saw.

    Raises:
        InputError: None of them has a recipe.
    """
    first = ingredients[0].model.path
    for source in released_files(first):
        if source.suffix not in (".safetensors", ".py") and source.name not in _NOT_KEPT:
            shutil.copyfile(source.resolve(), folder / source.name)
    recipe = next((path for each in ingredients if (path := recipe_of_model(each.model.path)).is_file()), None)
    if recipe is None:
        raise InputError(f"{first}: no {RECIPE_FILE}, in none of the models; name a run folder or a release")
    soup = [each.describe() for each in ingredients]
    text, names = recipe.read_text(encoding="utf-8"), ", ".join(soup_names(soup))
    (folder / RECIPE_FILE).write_text(f"# An average of {names}; trained as:\n{text}", encoding="utf-8")
    config = read_json_object(first / CONFIG_FILE)
    config.pop("auto_map", None)
    fitted = {"calibration_temperature": 1.0, "abstain_below": None}
    write_json(folder / CONFIG_FILE, {**config, **{name: value for name, value in fitted.items() if name in config}})
    save_file(_averaged(ingredients), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / METRICS_FILE, {})
    parent = {name: soup[0][name] for name in ("repo", "revision", "commit")}
    write_json(folder / LINEAGE_FILE, {"parent": parent, "data_fingerprint": dict(fingerprint), "soup": soup})
    mark_complete(folder, is_run_file)


def shared_fingerprint(models: Sequence[ResolvedModel]) -> dict[str, str]:
    """Split → content hash of its rows, for the splits that all models have alike."""
    found = [_fingerprint(model.path) for model in models]
    return {split: rows for split, rows in found[0].items() if all(each.get(split) == rows for each in found)}


def _fingerprint(folder: Path) -> dict[str, str]:
    if (folder / RELEASE_FILE).is_file():
        found = read_json_object(folder / RELEASE_FILE).get("extra", {})
    else:
        found = read_json_object(folder / LINEAGE_FILE) if (folder / LINEAGE_FILE).is_file() else {}
    return dict(found.get("data_fingerprint") or {})


def _misfit(first: ResolvedModel, other: ResolvedModel) -> str | None:
    """Why two models cannot be averaged; None where they can."""
    configs = [dict(_flat(read_json_object(model.path / CONFIG_FILE))) for model in (first, other)]
    if any(config.get("lora.rank") is not None for config in configs):
        return "low-rank changes are products, whose factors have no average; release both with `--lora merge` first"
    for key in configs[0]:
        tower = key.removesuffix("_quantization.bits")
        if tower != key and f"references.{tower}" not in configs[0]:
            return f"weights of {configs[0][key]} bits, which its {tower} model is stored in, have no average"
    for key in dict.fromkeys([*configs[0], *configs[1]]):
        ours, own = (config.get(key) for config in configs)
        if ours != own:
            return f"its {key} is {_shown(own)}, not {_shown(ours)}"
    for name in _INPUTS:
        paths = [model.path / name for model in (first, other)]
        ours, own = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None for path in paths)
        if ours != own:
            return f"it reads its inputs in another way ({name} differs)"
    with ExitStack() as stack:
        shapes = [_Tensors(model.path, stack).shapes for model in (first, other)]
        for name in dict.fromkeys([*shapes[0], *shapes[1]]):
            if name not in shapes[0] or name not in shapes[1]:
                return f"it {'lacks' if name in shapes[0] else 'has also'} the tensor {name}"
            if shapes[0][name] != shapes[1][name]:
                return f"its {name} is {shapes[1][name]}, not {shapes[0][name]}"
    return None


class _Tensors:
    """The tensors in the weights of a model folder, read one by one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no weights ({WEIGHTS_FILE})")
        for path in files:
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
                for name in opened.keys():  # noqa: SIM118  (safe_open cannot be iterated over)
                    self._files[name] = opened
                    self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except SafetensorError as error:
                raise InputError(f"{path}: the weights are damaged ({error}); restore the file") from error

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def _averaged(ingredients: Sequence[Ingredient]) -> dict[str, torch.Tensor]:
    """The weighted sums of tensors in fp32 (fp64 where they are), in the first model's dtype; counters are its own."""
    averaged = {}
    with ExitStack() as stack:
        opened = [(_Tensors(each.model.path, stack), each.weight) for each in ingredients]
        for name in opened[0][0].shapes:
            first = opened[0][0].read(name)
            if first.is_floating_point():
                wide = torch.promote_types(first.dtype, torch.float32)
                total = first.to(wide) * opened[0][1]
                for tensors, weight in opened[1:]:
                    total += tensors.read(name).to(wide) * weight
                first = total.to(first.dtype)
            averaged[name] = first
    return averaged


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            if name not in _MAY_DIFFER:
                yield from _flat(each, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
