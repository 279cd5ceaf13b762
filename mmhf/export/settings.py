"""`settings.json`: what is done to images and texts before an exported model, and with its outputs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from mmhf._version import __version__
from mmhf.errors import InputError
from mmhf.export.graphs import Graph
from mmhf.files import write_text
from mmhf.models.naflex import NaflexImageProcessor

TOKENIZER_FILE = "tokenizer.json"
_STEPS = ("do_resize", "do_rescale", "do_normalize")
_OPTIONS = (
    *(*_STEPS, "do_pad", "do_center_crop"),
    *("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std"),
)


def describe_images(processor: Any) -> dict[str, Any]:
    """How images are prepared, in the order of the steps.

    Raises:
        InputError: The image processor does something else than resizing, cropping, scaling and normalising.
    """
    images = processor.image_processor if isinstance(processor, ProcessorMixin) else processor
    if isinstance(images, NaflexImageProcessor):
        raise InputError(
            "mmhf export: graphs take images of one shape, this model takes each in its own (data.resize: naflex); "
            "serve it with mmhf serve, or train it with resize: squash"
        )
    options = {name: getattr(images, name) for name in _OPTIONS} | vars(processor).get("images_kwargs", {})
    size = {side: value for side, value in dict(options["size"]).items() if value is not None}
    crop = dict(options["crop_size"]) if options["do_center_crop"] else None
    skipped = [step for step in _STEPS if not options[step]]
    if skipped or options["do_pad"] or size.keys() not in ({"height", "width"}, {"shortest_edge"}):
        what = f"{skipped[0]}=false" if skipped else "do_pad=true" if options["do_pad"] else f"size={size}"
        raise InputError(f"mmhf export: an image processor with {what} has no place in settings.json")
    return {
        "resize": size,
        "interpolation": int(options["resample"]),
        "crop": None if crop is None else {side: crop[side] for side in ("height", "width")},
        "scale": options["rescale_factor"],
        "mean": list(options["image_mean"]),
        "std": list(options["image_std"]),
    }


def write_tokenizer(processor: Any, path: Path) -> dict[str, Any]:
    """Write the tokenizer's file, which cuts and pads texts as the processor does, and say how it is used.

    Raises:
        InputError: The tokenizer has no such file.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise InputError(f"mmhf export: {type(tokenizer).__name__} has no {TOKENIZER_FILE}; a fast tokenizer has")
    processor(text=["a", "a"])  # the file holds truncation and padding of the last call
    write_text(path, tokenizer.backend_tokenizer.to_str())
    return {"tokenizer": path.name, "prefix": vars(processor).get("text_prefix", "")}


def describe_graphs(graphs: Sequence[Graph], suffix: str) -> dict[str, Any]:
    """File, inputs and outputs of each graph; a length that may change has a name in place of a number."""
    described = {}
    for graph in graphs:
        inputs = {
            name: {
                "shape": [graph.lengths[name].get(axis, length) for axis, length in enumerate(tensor.shape)],
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for name, tensor in graph.example.items()
        }
        described[graph.name] = {"file": graph.name + suffix, "inputs": inputs, "outputs": list(graph.outputs)}
    return described


def describe_origin(model: str, model_type: str, digest: str) -> dict[str, Any]:
    """What was exported, and by what."""
    return {"model": model, "model_type": model_type, "model_hash": digest, "made_by": f"mmhf {__version__}"}


def agreement(differences: Mapping[str, float], *, rows: int, of: str) -> dict[str, Any]:
    """How far each graph is from the model."""
    return {"rows": rows, "of": of, "largest_difference": dict(differences)}
