"""A small world to do damage in: sixteen pictures, two models, and what each verb makes of them undisturbed."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import importlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from transformers import conversion_mapping
from trials import Disturbance, Result, disk_usage, run

import mmhf.evaluation.report.classification
import mmhf.sweep.outcome
import mmhf.sweep.trial_process
import mmhf.verbs.embed
import mmhf.verbs.predict
import mmhf.verbs.sweep

VERBS = ("train", "prepare", "cache", "evaluate", "predict", "embed", "sweep", "release")
_ROWS = 16
# What children would import again and again; verbs import some of it late.
_IMPORTED = (
    *(f"mmhf.verbs.{verb}" for verb in VERBS),
    "detect_secrets.settings",
    "matplotlib.backends.backend_agg",
    "rich.table",
    "simplejpeg",
)


@contextlib.contextmanager
def quick_verbs() -> Iterator[None]:
    """No plots, small shards, and trials of sweeps that are forked: for the children of this process.

    What is imported now, and what transformers makes once, is neither made nor counted as garbage by each child.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    conversion_mapping.get_checkpoint_conversion_mapping("none")
    original = mmhf.verbs._table_job.job_settings
    patches = [
        (mmhf.evaluation.report.target_report.TargetReport, "plots", lambda *args, **kwargs: {}),
        (mmhf.sweep.outcome, "_draw", lambda *args, **kwargs: {}),
        (mmhf.sweep.trial_process, "_CONTEXT", multiprocessing.get_context("fork")),
        (mmhf.verbs.sweep, "preload", lambda module: None),
    ]
    for verb in (mmhf.verbs.predict, mmhf.verbs.embed):
        small = lambda options: dataclasses.replace(original(options), shard_rows=4, progress=False)  # noqa: E731
        patches.append((verb, "job_settings", small))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        for owner, name, value in before:
            setattr(owner, name, value)


class World:
    """Sixteen pictures, a classifier and a dual encoder trained on them, and all that the verbs make of these.

    Args:
        folder (`Path`): An empty folder.

    Attributes:
        durations (`dict[str, float]`): Seconds that each verb takes.
        sizes (`dict[str, int]`): Bytes on disk of what it makes.
        expected (`dict[str, str]`): Fingerprint of that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _write_data(folder)
        self.recipe = _write(folder / "ic.yaml", _classifier(folder))
        self.pairs = _write(folder / "du.yaml", _dual_encoder(folder))
        space = {"metric": "accuracy", "sampler": "random", "trials": 2}
        space["space"] = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}
        self.space = _write(folder / "space.yaml", space)
        self.durations: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        self.expected: dict[str, str] = {}
        for recipe, name in ((self.pairs, "pairs"), (self.recipe, "run")):
            self._run(["train", recipe, f"training.output_dir={name}"], folder)
        for verb in VERBS:
            whole = folder / "whole" / verb
            whole.mkdir(parents=True)
            self.durations[verb] = self._run(self.arguments(verb), whole).seconds
            self.sizes[verb] = disk_usage(whole)
            self.expected[verb] = self.fingerprint(verb, whole)

    def _run(self, arguments: Sequence[object], folder: Path) -> Result:
        result = run(arguments, folder, Disturbance())
        if result.code != 0:
            raise RuntimeError(f"{arguments}: {result.code}\n{result.output}")
        return result

    def arguments(self, verb: str) -> list[object]:
        """A verb's command line, which writes below the working directory."""
        model, pairs, data = self.folder / "run", self.folder / "pairs", self.folder / "table.csv"
        batch = ("--batch-size", 2)
        return {
            "train": ["train", self.recipe, "training.output_dir=run"],
            "prepare": ["prepare", self.recipe, "-o", "prepared"],
            "cache": ["cache", self.recipe],
            "evaluate": ["evaluate", model, "--output", "evaluated"],
            "predict": ["predict", model, "--input", data, "--output", "out.csv", *batch],
            "embed": ["embed", pairs, "--input", self.folder / "pairs.csv", "--output", "out.parquet", *batch],
            "sweep": ["sweep", self.recipe, self.space, "--output", "sweep", "training.max_steps=2", "~stages"],
            "release": ["release", model, "--repo", "releases", "--version", "1.0"],
        }[verb]

    def fingerprint(self, verb: str, folder: Path) -> str:
        """What a verb made, without times."""
        digest = hashlib.sha256()
        if verb == "train":
            for name in ("run/model.safetensors", "run/metrics.json"):
                digest.update((folder / name).read_bytes())
        elif verb == "prepare":
            for path in sorted((folder / "prepared").glob("[!.]*")):
                digest.update(path.name.encode() + path.read_bytes())
        elif verb == "cache":
            records = {path.name: path.read_bytes() for path in folder.glob("features/*/*.records")}
            rows = {content[at : at + 24] for content in records.values() for at in range(0, len(content) - 23, 24)}
            digest.update(b"".join(sorted(rows)))
        elif verb == "evaluate":
            digest.update((folder / "evaluated" / "metrics.json").read_bytes())
        elif verb == "predict":
            digest.update((folder / "out.csv").read_bytes())
        elif verb == "embed":
            import pyarrow.parquet as pq

            digest.update(repr(pq.read_table(folder / "out.parquet").to_pylist()).encode())
        elif verb == "sweep":
            rows = (folder / "sweep" / "trials.csv").read_text().splitlines()
            kept = [[cell for at, cell in enumerate(row.split(",")) if at != 4] for row in rows]
            digest.update(json.dumps(kept).encode() + (folder / "sweep" / "best.yaml").read_bytes())
        elif verb == "release":
            release = json.loads((folder / "releases" / "v1.0" / "release.json").read_text())
            digest.update(release["commit"].encode())
            for name in sorted(release["files"]):
                digest.update((folder / "releases" / "v1.0" / name).read_bytes())
        return digest.hexdigest()

    def is_same(self, verb: str, folder: Path) -> bool:
        """Whether a verb made there what it makes undisturbed."""
        try:
            return self.fingerprint(verb, folder) == self.expected[verb]
        except (OSError, ValueError, KeyError, IndexError):  # not there, or not what it should be
            return False


def _write(path: Path, values: Mapping[str, object]) -> Path:
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    return path


def _write_data(folder: Path) -> None:
    generator = np.random.default_rng(0)
    lines, pairs = ["image,label"], ["image,caption"]
    for number in range(_ROWS):
        pixels = generator.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        pixels[..., number % 2] += 150
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg,{'red' if number % 2 else 'green'}")
        pairs.append(f"{number}.jpg,a {'red' if number % 2 else 'green'} square number {number}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "pairs.csv").write_text("\n".join(pairs) + "\n")


_TRAINING = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "epoch",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def _classifier(folder: Path) -> dict[str, object]:
    split = {"validation": 0.25, "test": 0.0}
    return {
        "task": "image-classification",
        "model": {"vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "pooling": "avg"}},
        "data": {
            "source": "table",
            "path": str(folder / "table.csv"),
            "image_size": 32,
            "split": split,
            "find_duplicates": "near",
        },
        "cache": "on",
        "training": dict(_TRAINING),
        "stages": [
            {"name": "head", "epochs": 1, "train": ["head"], "carry_best": "accuracy"},
            {"name": "all", "epochs": 1, "train": "all"},
        ],
        "evaluation": {"splits": ["validation"]},
    }


def _dual_encoder(folder: Path) -> dict[str, object]:
    return {
        "task": "contrastive",
        "model": {
            "vision": {"patch_size": 16, "width": 32, "layers": 1, "heads": 2, "pooling": "avg"},
            "text": {"width": 32, "layers": 1, "heads": 2, "pooling": "eot", "vocab_size": 300},
            "embedding_dim": 16,
        },
        "data": {"source": "table", "path": str(folder / "pairs.csv"), "image_size": 32, "max_length": 16},
        "contrastive": {"batch_size": 4},
        "training": {**_TRAINING, "num_train_epochs": 1, "save_strategy": "no"},
    }
