"""An exported classifier in ONNX Runtime, in float32 and in int8, against the same model in PyTorch as it is.

EfficientNet-Lite0 with random weights at 224 pixels, on the CPU, with the threads that torch has; rounds alternate.
The rival runs as transformers runs a model: eagerly, channel by channel, without what mmhf does to run it faster. The
aims: 1.3 times as fast in float32, 1.8 times in int8.

    python benchmarks/export.py [ROUNDS] [BATCH]
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["MMHF_CHANNELS_LAST"] = "off"

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import numpy as np  # isort: skip
import torch
from serving import SIDE, save_model

from mmhf.export.folder import export_model, sample_examples
from mmhf.export.formats import load_graph
from mmhf.export.graphs import ClassifierGraphs
from mmhf.export.int8 import quantize
from mmhf.inference.loading import load_model


def seconds(run):
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main(rounds=3, batch=8):
    with tempfile.TemporaryDirectory() as scratch:
        folder, exported = Path(scratch) / "model", Path(scratch) / "exported"
        save_model(folder)
        export_model(folder, exported)
        model, processor = load_model(folder, device=torch.device("cpu"))
        pixels = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
        inputs = {"pixel_values": pixels}
        (graph,) = ClassifierGraphs(model, processor).graphs(sample_examples())
        smaller = exported / "int8.onnx"
        quantize(graph, exported / "model.onnx", smaller, [inputs])
        session, session8 = (load_graph(path, ["logits"]) for path in (exported / "model.onnx", smaller))

        @torch.inference_mode()
        def eager():
            model(pixel_values=torch.from_numpy(pixels))

        runs = {"eager": eager, "onnx": lambda: session(inputs), "int8": lambda: session8(inputs)}
        found = {name: [] for name in runs}
        for round_number in range(rounds + 1):
            for name, run in runs.items():
                took = seconds(run)
                if round_number:
                    found[name].append(took)
        took = {name: statistics.median(values) for name, values in found.items()}
    for name, label in (("onnx", "ONNX Runtime"), ("int8", "int8")):
        rates = f"PyTorch {batch / took['eager']:.1f} images/s, {label} {batch / took[name]:.1f} images/s"
        print(f"{rates}: {took['eager'] / took[name]:.2f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
