"""What becomes of a model's low-rank changes in a release: merged into its weights, or apart from them."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE, read_json_object
from mmhf.models.backbones import reference_of
from mmhf.models.family import families
from mmhf.models.layer_groups import is_lora
from mmhf.models.tower import TowerModel

logger = logging.getLogger(__name__)


def settle_lora(folder: Path, form: Literal["merge", "keep"] | None) -> dict[str, Any] | None:
    """Give a model folder the form in which its low-rank changes are released.

    Args:
        folder (`Path`): Holds `config.json` and weights, or links to them; both are replaced where need be.
        form (`"merge" | "keep"`, *optional*): See `release.lora` of a recipe.

    Returns:
        `dict`, or `None`: `form`, `rank`, `alpha` and `dora` of the changes; None where there are none.

    Raises:
        InputError: The model has none, but a form was asked for; or weights of few bits should be merged with.
    """
    config = read_json_object(folder / CONFIG_FILE)
    lora, references = config.get("lora"), config.get("references") or {}
    if lora is None:
        if form is not None:
            raise InputError(f"release.lora: {form}, but the model has no low-rank changes; leave it out")
        return None
    changed = {name.partition(".")[0] for name in lora["modules"]}
    # Weights of few bits cannot be merged with, and are small enough to be stored.
    few_bits = {name for name in changed if config.get(f"{name}_quantization") is not None}
    is_apart = changed <= references.keys() | few_bits
    form = form or ("keep" if few_bits or is_apart else "merge")
    if form == "merge" or not is_apart:
        model = families()[config["model_type"]].load("model").from_pretrained(folder)
        if form == "merge":
            model.merge_lora()
        else:
            model.refer_to({**references, **_unchanged(model)})
        _replace_weights(folder, model)
    return {"form": form, **{name: lora[name] for name in ("rank", "alpha", "dora")}}


def _unchanged(model: TowerModel) -> dict[str, str]:
    """Encoders whose own weights are those of their backbones, to the last bit → where these are."""
    found = {}
    for name, encoder in model.encoders().items():
        backbone = vars(model.config).get(f"{name}_backbone")
        reference = None if backbone is None else reference_of(backbone)
        if reference is None:
            logger.info("The release holds the weights of %s: %s is no place to fetch them from", name, backbone)
            continue
        loaded = model.load_part(name, reference)
        model.drop_unused_of(name, loaded)
        model.quantize_part(name, loaded)
        theirs = loaded.state_dict()
        ours = {
            key.replace(".base_layer.", "."): each for key, each in encoder.state_dict().items() if not is_lora(key)
        }
        if ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours):
            found[name] = reference
        else:
            logger.info("The release holds the weights of %s: they are no longer those of %s", name, reference)
    return found


def _replace_weights(folder: Path, model: PreTrainedModel) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model.save_pretrained(scratch)
        for path in Path(scratch).iterdir():
            if path.name == CONFIG_FILE or ".safetensors" in path.name:
                path.replace(folder / path.name)
