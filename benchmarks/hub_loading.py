"""Loading a release against loading its parts: `from_pretrained` of the released model, and of its two encoders.

True sizes of EfficientNet-B0 and DistilBERT, random weights, files in the page cache, rounds alternate in one process.
The aim: at most 1.2. Finding the release by its name with all hashes checked stands beside them.

    python benchmarks/hub_loading.py [ROUNDS]
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import torch  # isort: skip
from transformers import AutoModel, CLIPImageProcessor, DistilBertConfig

from mmhf.hub.releases import resolve_model, write_release
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification

STATISTICS = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def make_release(folder: Path) -> Path:
    torch.manual_seed(0)
    config = FusionConfig(timm_config("efficientnet_b0", STATISTICS), DistilBertConfig())
    model = FusionForImageTextClassification(config)
    run_dir = folder / "run"
    model.save_pretrained(run_dir)
    CLIPImageProcessor().save_pretrained(run_dir)
    (run_dir / "recipe.yaml").write_text("task: image-text-classification\n")
    (run_dir / "metrics.json").write_text(json.dumps({"test_accuracy": 0.5}))
    model.vision.save_pretrained(folder / "vision")
    model.text.save_pretrained(folder / "text")
    return write_release(run_dir, folder / "releases", "1.0")


def load_parts(folder: Path) -> None:
    AutoModel.from_pretrained(folder / "vision")
    AutoModel.from_pretrained(folder / "text")


def main(rounds=7):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        release = make_release(folder)
        sides = {
            "release": lambda: AutoModel.from_pretrained(release),
            "its parts": lambda: load_parts(folder),
            "finding it, hashes checked": lambda: resolve_model(f"{folder / 'releases'}@1.0"),
        }
        times = {name: [] for name in sides}
        for _ in range(rounds + 1):
            for name, side in sides.items():
                begun = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1000 * seconds:.0f} ms")
    print(f"a release against its parts: ratio {medians['release'] / medians['its parts']:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
