"""Exported classifiers in ONNX Runtime, in float32 and in int8, against the same models in PyTorch as they are.

EfficientNet-Lite0 at 224 pixels, alone and with MiniLM on 32 tokens, on the CPU, with the threads that torch has;
rounds alternate. The rival runs as transformers runs a model: eagerly, channel by channel, without what mmhf does to
run it faster. The aims: 1.3 times as fast in float32, 1.8 times in int8.

    python benchmarks/export.py [ROUNDS] [BATCH]
"""

import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["MMHF_CHANNELS_LAST"] = "off"

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import numpy as np  # isort: skip
import torch
from serving import SIDE, save_model

from mmhf.export.folder import export_model, sample_examples
from mmhf.export.formats import FORMATS
from mmhf.export.graphs import ClassifierGraphs
from mmhf.export.int8 import quantize
from mmhf.inference.loading import load_model
from mmhf.models.fusion.building import build_fusion_model, build_fusion_processor
from mmhf.recipe import load_recipe

TOKENS = 32


def seconds(run):
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def save_fusion(folder):
    """The model of `quickstart/fusion` before training: EfficientNet-Lite0 and MiniLM."""
    recipe = load_recipe("quickstart/fusion", [f"data.image_size={SIDE}"]).recipe
    build_fusion_model(recipe.model, label_names=["a", "b"]).save_pretrained(folder)
    build_fusion_processor(recipe.model, recipe.data).save_pretrained(folder)


def compare(name, folder, inputs, rounds):
    """Print the images a second of a model as it is, and of its graph in float32 and in int8."""
    model, processor = load_model(folder, device=torch.device("cpu"))
    export_model(folder, folder / "exported")
    (graph,) = ClassifierGraphs(model, processor).graphs(sample_examples())
    paths = {"ONNX Runtime": folder / "exported" / "model.onnx", "int8": folder / "exported" / "int8.onnx"}
    quantize(graph, paths["ONNX Runtime"], paths["int8"], [inputs])
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}

    @torch.inference_mode()
    def eager():
        model(**tensors)

    runs = {"PyTorch": eager}
    runs |= {label: partial(FORMATS["onnx"].load(path, ["logits"]), inputs) for label, path in paths.items()}
    found = {label: [] for label in runs}
    for round_number in range(rounds + 1):
        for label, run in runs.items():
            took = seconds(run)
            if round_number:
                found[label].append(took)
    rates = {label: len(inputs["pixel_values"]) / statistics.median(values) for label, values in found.items()}
    for label in paths:
        told = f"{name}: PyTorch {rates['PyTorch']:.1f} images/s, {label} {rates[label]:.1f} images/s"
        print(f"{told}: {rates[label] / rates['PyTorch']:.2f} x", flush=True)


def main(rounds=3, batch=8):
    random = np.random.default_rng(0)
    pixels = {"pixel_values": random.standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)}
    texts = {
        "input_ids": random.integers(1000, 20000, (batch, TOKENS)),
        "attention_mask": np.ones((batch, TOKENS), dtype=np.int64),
    }
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch) / "images")
        compare("image classifier", Path(scratch) / "images", pixels, rounds)
        save_fusion(Path(scratch) / "fusion")
        compare("fusion", Path(scratch) / "fusion", {**pixels, **texts}, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
