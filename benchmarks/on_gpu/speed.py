"""Steps eager and compiled, cached gradients, waiting for data, stored features, generation."""

import dataclasses
import os
import statistics
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from on_gpu.bench import Bench, count_flops, one_line, released, time_training
from on_gpu.families import FAMILIES, SHAPES
from PIL import Image
from transformers import TrainerCallback

from mmhf.parallel import map_in_threads
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, training_arguments
from mmhf.training.trainer import MMTrainer

PEAK_FLOPS = 989e12


def families(bench: Bench) -> None:
    """Samples/s, MFU and peak memory of a training step, bf16, eager."""
    for name in [*FAMILIES, "captioner, language too"]:
        time_family(bench, "training", name)
    if not bench.sizes.is_dry:  # on a CPU there are no copies
        os.environ["MMHF_FROZEN_COPIES"] = "off"
        time_family(bench, "training", "captioner, cast each step")
        del os.environ["MMHF_FROZEN_COPIES"]


def compiled(bench: Bench) -> None:
    """The same, compiled."""
    backend = {"torch_compile_backend": "aot_eager"} if bench.sizes.is_dry else {}
    try:
        for name in FAMILIES:
            time_family(bench, "compiled", name, torch_compile=True, **backend)
    finally:
        for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
            os.environ.pop(name, None)


def time_family(bench: Bench, section: str, name: str, **values: Any) -> None:
    """One line of the table; a family that fails leaves the others theirs."""
    try:
        _time_family(bench, section, name, **values)
    except Exception as error:  # noqa: BLE001
        bench.errors[f"{section}: {name}"] = one_line(error)
        traceback.print_exc()


def _time_family(bench: Bench, section: str, name: str, **values: Any) -> None:
    family = FAMILIES[name.partition(",")[0]]
    if "language" in name:
        family = dataclasses.replace(family, trained=("projector", "language"))
    with released(bench):
        model, count = bench.model(family), bench.sizes.batches[name.partition(",")[0]]
        batch = bench.batch(family, count)
        flops = count_flops(bench, family, count)
        clock = time_training(bench, family, model, batch, **values)
        note = f"{SHAPES[name]}, batch {count}, {flops / count / 1e9:.1f} GFLOP a sample"
        if values:
            note += f", first step {clock.first_step:.0f} s"
        bench.add(
            section,
            name,
            note,
            samples_per_second=count / clock.step_seconds,
            step_ms=1000 * clock.step_seconds,
            mfu=flops / clock.step_seconds / PEAK_FLOPS,
            **bench.peak_gib(),
        )


def caching(bench: Bench) -> None:
    """Contrast many pairs in micro-batches with cached gradients."""
    family, sizes = FAMILIES["dual encoder"], bench.sizes
    pairs, size = sizes.cached_pairs, sizes.cached_micro_batch
    with released(bench):
        model, batch = bench.model(family), bench.batch(family, size)
        flops = count_flops(bench, family, pairs)
        clock = time_training(bench, family, model, batch, accumulation=pairs // size)
        bench.add(
            "gradient caching",
            f"{pairs:,} pairs",
            f"in micro-batches of {size}; embeds all but the first twice, which MFU does not count",
            samples_per_second=pairs / clock.step_seconds,
            step_ms=1000 * clock.step_seconds,
            mfu=flops / clock.step_seconds / PEAK_FLOPS,
            **bench.peak_gib(),
        )


def write_jpegs(folder: Path, count: int, classes: int = 8) -> None:
    """Smooth noise of 500 × 375 pixels in class folders, as large as photographs in a file."""

    def write(number: int) -> None:
        path = folder / f"class_{number % classes}" / f"{number:05d}.jpg"
        noise = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)

    for number in range(classes):
        (folder / f"class_{number}").mkdir(parents=True)
    list(map_in_threads(write, range(count)))


class Epochs(TrainerCallback):
    """When each epoch began and ended, and when the first step did."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begins.append(time.perf_counter())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bench.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of all epochs but the first, from end to end."""
        return list(np.diff(self.ends))


def recipe_trainer(
    bench: Bench, source: Mapping[str, Any], *, batch: int, epochs: int, train: str, cache: str
) -> MMTrainer:
    """The trainer of a recipe over a folder of JPEGs, made by the road that `mmhf train` takes."""
    workers = 2 if bench.sizes.is_dry else max((os.cpu_count() or 4) - 2, 1)
    values = {
        "task": "image-classification",
        "model": {"vision": {"backbone": f"timm/{bench.sizes.resnet}", "pretrained": False}},
        "data": {**source, "image_size": bench.sizes.pixels},
        "cache": {"mode": cache, "folder": str(bench.folder / "features")},
        "training": {
            "output_dir": str(bench.folder / train), "per_device_train_batch_size": batch, "bf16": True,
            "dataloader_num_workers": workers, "dataloader_persistent_workers": cache == "off", "report_to": "none",
            "save_strategy": "no", "eval_strategy": "no", "logging_steps": 10_000, "disable_tqdm": True,
            "use_cpu": bench.device.type == "cpu",
        },
        "stages": [{"name": train, "epochs": epochs, "train": train}],
    }  # fmt: skip
    if cache == "on":  # stored features are read faster than they travel between processes
        values["training"]["dataloader_num_workers"] = 0
    path = bench.folder / f"{train}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    resolved = load_recipe(str(path), [])
    task = task_of(resolved.recipe)
    data = task.load_data()
    args = training_arguments(resolved.recipe, str(bench.folder / train), has_validation=False)
    processor = task.build_processor(data)
    model = task.build_model(data, processor=processor)
    plan = build_stage_plan(model, resolved.recipe, args, task.num_train_rows(data))
    args.max_steps = plan.num_steps
    return task.make_trainer(data, plan=plan, args=args, processor=processor)


def waiting(bench: Bench) -> None:
    """A folder of JPEGs through the workers: how much longer a step takes than on a batch that is there."""
    images = bench.folder / "jpegs"
    begun = time.perf_counter()
    if not images.exists():
        write_jpegs(images, bench.sizes.jpegs)
    written = time.perf_counter() - begun
    batch = bench.sizes.batches["image classifier"]
    with released(bench):
        begun = time.perf_counter()
        source = {"source": "image_folder", "path": str(images)}
        trainer = recipe_trainer(bench, source, batch=batch, epochs=bench.sizes.epochs, train="all", cache="off")
        loaded, epochs, blocked = time.perf_counter() - begun, Epochs(bench), [0.0]
        take = trainer.get_batch_samples

        def timed(*args: Any) -> Any:
            begun = time.perf_counter()
            try:
                return take(*args)
            finally:
                blocked[0] += time.perf_counter() - begun

        trainer.get_batch_samples = timed
        trainer.add_callback(epochs)
        trainer.train()
        num_rows = len(trainer.train_dataset)
        seconds = statistics.median(epochs.seconds)
        share_blocked = blocked[0] / (epochs.ends[-1] - epochs.begins[0])
        family = FAMILIES["image classifier"]
        alone = time_training(bench, family, bench.model(family), bench.batch(family, batch)).step_seconds
        computing = alone * num_rows / batch
        bench.add(
            "data",
            "JPEGs of 500 × 375",
            f"ResNet-50, {num_rows:,} rows, {os.cpu_count()} CPUs: waits {max(1 - computing / seconds, 0):.1%} of an "
            f"epoch beside computing alone; the host spends {share_blocked:.1%} in its loader, the first epoch "
            f"included; table in {loaded:.1f} s, files written in {written:.1f} s",
            samples_per_second=num_rows / seconds,
            waiting=max(1 - computing / seconds, 0.0),
        )


def stored(bench: Bench) -> None:
    """A head on stored features of a large table of the same images."""
    images = bench.folder / "jpegs"
    if not images.exists():
        write_jpegs(images, bench.sizes.jpegs)
    paths = sorted(path.relative_to(images) for path in images.rglob("*.jpg"))
    if not bench.sizes.is_dry:
        paths = paths[:1024]
    table = bench.folder / "table.csv"
    rows = [f"{path},{path.parent}" for path in paths] * (2 if bench.sizes.is_dry else 256)
    table.write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    with released(bench):
        batch, begun = 16 if bench.sizes.is_dry else 4096, time.perf_counter()
        source = {
            "source": "table",
            "path": str(table),
            "image_root": str(images),
            "split": {"validation": 0.1, "test": 0.1},
        }
        trainer = recipe_trainer(bench, source, batch=batch, epochs=bench.sizes.epochs, train="head", cache="on")
        loaded, epochs, begun = time.perf_counter() - begun, Epochs(bench), time.perf_counter()
        trainer.add_callback(epochs)
        trainer.train()
        filled = epochs.begins[0] - begun
        num_rows = len(trainer.train_dataset)
        facts = "; ".join((trainer.features.facts() if trainer.features else {}).values())
        bench.add(
            "stored features",
            "head-only epoch",
            f"ResNet-50, {num_rows:,} rows, batch {batch}; table in {loaded:.1f} s; before the first epoch "
            f"{filled:.1f} s; {facts}",
            samples_per_second=num_rows / statistics.median(epochs.seconds),
        )


def generation(bench: Bench) -> None:
    """Captions of a batch, greedy."""
    family, count = FAMILIES["captioner"], bench.sizes.batches["captioner"]
    with released(bench):
        model = bench.model(family).eval()
        pixels, length = bench.batch(family, count)["pixel_values"], bench.sizes.caption
        options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
        seconds = []
        with torch.autocast(bench.device.type, torch.bfloat16):
            for _ in range(3):
                bench.synchronize()
                begun = time.perf_counter()
                tokens = model.generate(pixels, **options)
                bench.synchronize()
                seconds.append(time.perf_counter() - begun)
        assert tokens.shape == (count, length)
        bench.add(
            "generation",
            "captioner",
            f"batch {count}, {length} new tokens each, greedy",
            samples_per_second=count / min(seconds),
            step_ms=1000 * min(seconds) / length,
        )
