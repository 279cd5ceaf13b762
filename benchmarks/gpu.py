"""What a GPU makes of mmhf: the four families at true shapes with random weights, in one table.

Speed eager and compiled, MFU, peak memory, waiting for data, stored features, gradient caching, generation; proof:
one step in fp32 equals the CPU's, a stopped run resumes to the same bits, every family goes the whole road, and stock
pipelines answer on the GPU as on the CPU. Needs no network and takes under 7 minutes on an H100. A section that fails
says so, and the others go on; what has been measured is written after each of them.

    python benchmarks/gpu.py [--json FILE] [--dry-run] [--only SECTION ...] [--seconds 360]

MFU is FLOPs of a step / (its seconds × 989e12, the dense bf16 peak of an H100 or H200). The FLOPs are counted by torch
over one forward and backward pass of what trains: two for each multiply-add of matrix products, convolutions and
attention (causal attention as if it were full); what is computed a second time to save memory does not count.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the sums of cuBLAS repeat
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import accelerate  # isort: skip
import datasets
import numpy as np
import timm
import torch
import transformers
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)

from mmhf.data.datasets import RowDataset
from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.parallel import map_in_threads
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, training_arguments
from mmhf.training.captioning import CaptioningTrainer
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import apply_freezing
from mmhf.verbs.train import train as train_recipe

PEAK_FLOPS = 989e12
GIB = 2**30
WARM_UP = 3
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Batch = dict[str, torch.Tensor]


class OutOfTime(BaseException):
    """A section took longer than it may; no `except Exception` on the way may keep it."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of everything: true ones, or tiny ones for a dry run on a CPU."""

    is_dry: bool
    pixels: int
    tokens: int
    caption: int
    vocabulary: int
    bert: Mapping[str, int]
    vit: Mapping[str, int]
    clip_text: Mapping[str, int]
    qwen: Mapping[str, Any]
    efficientnet: str
    resnet: str
    batches: Mapping[str, int]
    steps: int
    cached_pairs: int
    cached_micro_batch: int
    jpegs: int
    epochs: int


TRUE = Sizes(
    is_dry=False, pixels=224, tokens=128, caption=22, vocabulary=30_522,
    bert={"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    vit={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    clip_text={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
    qwen={
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    efficientnet="efficientnet_b0", resnet="resnet50",
    batches={"fusion": 256, "dual encoder": 512, "captioner": 128, "image classifier": 256},
    steps=15, cached_pairs=4096, cached_micro_batch=512, jpegs=4096, epochs=4,
)  # fmt: skip
_NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = Sizes(
    is_dry=True, pixels=32, tokens=8, caption=6, vocabulary=120,
    bert={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, vit=_NARROW, clip_text=_NARROW,
    qwen={**_NARROW, "vocab_size": 200, "num_key_value_heads": 1},
    efficientnet="test_efficientnet", resnet="test_resnet",
    batches={"fusion": 4, "dual encoder": 4, "captioner": 4, "image classifier": 4},
    steps=2, cached_pairs=16, cached_micro_batch=4, jpegs=32, epochs=2,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is built at the sizes of a run, and what it trains on.

    Attributes:
        make (`Callable[[Sizes], PreTrainedModel]`): A model without dropout.
        inputs (`Callable[[Sizes, int], Batch]`): So many samples, on the CPU.
        trainer_class (`type[MMTrainer]`): The family's trainer.
        trained (`str` or `list[str]`): What trains in the timed stage.
        head (`list[str]`): What trains in a first stage.
    """

    make: Callable[[Sizes], PreTrainedModel]
    inputs: Callable[[Sizes, int], Batch]
    trainer_class: type[MMTrainer] = MMTrainer
    trained: str | tuple[str, ...] = "all"
    head: tuple[str, ...] = ("head",)


def _timm(architecture: str, sizes: Sizes) -> Any:
    mean, std = HALF
    side = sizes.pixels
    return timm_config(
        architecture, {"input_size": [3, side, side], "mean": mean, "std": std, "interpolation": "bicubic"}
    )


def make_fusion(sizes: Sizes) -> PreTrainedModel:
    text = DistilBertConfig(vocab_size=sizes.vocabulary, dropout=0.0, attention_dropout=0.0, **sizes.bert)
    vision = _timm(sizes.efficientnet, sizes)
    return FusionForImageTextClassification(FusionConfig(vision, text, dropout=0.0, id2label={0: "true", 1: "fake"}))


def make_image_classifier(sizes: Sizes) -> PreTrainedModel:
    labels = {number: f"class {number}" for number in range(38)}
    config = BackboneForImageClassificationConfig(
        _timm(sizes.resnet, sizes), head_hidden_dim=512, head_dropout=(0.0, 0.0), id2label=labels
    )
    return BackboneForImageClassification(config)


def make_dual_encoder(sizes: Sizes) -> PreTrainedModel:
    vision = ViTConfig(image_size=sizes.pixels, patch_size=16, **sizes.vit)
    text = CLIPTextConfig(vocab_size=max(sizes.vocabulary, 100), **sizes.clip_text)
    return DualEncoderModel(DualEncoderConfig(vision, text, text_pooling="last_token"))


def make_captioner(sizes: Sizes) -> PreTrainedModel:
    vision = CLIPVisionConfig(image_size=sizes.pixels, patch_size=16, projection_dim=512, **sizes.vit)
    language = Qwen2Config(pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes.qwen)
    return PrefixCaptionerForConditionalGeneration(PrefixCaptionerConfig(vision, language))


def _pixels(sizes: Sizes, count: int) -> torch.Tensor:
    return torch.randn(count, 3, sizes.pixels, sizes.pixels)


def _texts(length: int, vocabulary: int, count: int) -> Batch:
    tokens = torch.randint(2, vocabulary, (count, length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def fusion_inputs(sizes: Sizes, count: int) -> Batch:
    texts = _texts(sizes.tokens, sizes.vocabulary, count)
    return {"pixel_values": _pixels(sizes, count), **texts, "labels": torch.randint(0, 2, (count,))}


def image_classifier_inputs(sizes: Sizes, count: int) -> Batch:
    return {"pixel_values": _pixels(sizes, count), "labels": torch.randint(0, 38, (count,))}


def dual_encoder_inputs(sizes: Sizes, count: int) -> Batch:
    texts = _texts(min(sizes.tokens, 77), sizes.vocabulary, count)
    return {"pixel_values": _pixels(sizes, count), **texts, "image_index": torch.arange(count)}


def captioner_inputs(sizes: Sizes, count: int) -> Batch:
    """Captions of Flickr30k's lengths: 9 to 22 tokens, and what ends them."""
    texts = _texts(sizes.caption, sizes.qwen["vocab_size"], count)
    lengths = torch.randint(sizes.caption // 2 - 1, sizes.caption + 1, (count,))
    is_padding = torch.arange(sizes.caption) >= lengths[:, None]
    mask = (~is_padding).long()
    labels = texts["input_ids"].masked_fill(is_padding, -100)
    return {
        "pixel_values": _pixels(sizes, count),
        "input_ids": texts["input_ids"],
        "attention_mask": mask,
        "labels": labels,
    }


FAMILIES = {
    "dual encoder": Family(
        make_dual_encoder, dual_encoder_inputs, ContrastiveTrainer, head=("projections", "temperature")
    ),
    "captioner": Family(
        make_captioner, captioner_inputs, CaptioningTrainer, trained=("projector",), head=("projector",)
    ),
    "fusion": Family(make_fusion, fusion_inputs),
    "image classifier": Family(make_image_classifier, image_classifier_inputs),
}
SHAPES = {
    "dual encoder": "ViT-B/16 + 12-layer text tower, all trains",
    "captioner": "CLIP ViT-B/16 + MLP + Qwen2.5-0.5B, projector trains",
    "captioner, language too": "the same, projector and language model train",
    "captioner, cast each step": "as the first, without bf16 copies of frozen weights",
    "fusion": "EfficientNet-B0 + DistilBERT, 128 tokens, all trains",
    "image classifier": "ResNet-50, all trains",
}


class Bench:
    """What is run on, what has been measured, and where it is written."""

    def __init__(self, sizes: Sizes, json_path: Path | None, folder: Path) -> None:
        self.sizes = sizes
        self.json_path = json_path
        self.folder = folder
        self.device = torch.device("cpu" if sizes.is_dry else "cuda")
        self.rows: list[dict[str, Any]] = []
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def add(self, section: str, name: str, note: str = "", **values: Any) -> None:
        """Keep and show one line of the table."""
        self.rows.append({"section": section, "name": name, "note": note, **values})
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        print(f"[{section}] {name}: {shown} {note}", flush=True)
        self.write()

    def write(self) -> None:
        if self.json_path is not None:
            found = {
                "environment": environment(),
                "rows": self.rows,
                "errors": self.errors,
                "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            }
            self.json_path.write_text(json.dumps(found, indent=1), encoding="utf-8")

    def table(self) -> str:
        """All of it in Markdown."""
        lines = [
            "| | what | samples/s | ms a step | MFU | peak GiB | found |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
            cells = [_short(row.get(key, "")) for key in ("samples_per_second", "step_ms")]
            lines.append(
                f"| {row['section']} | {row['name']} | {' | '.join(cells)} | {mfu} | "
                f"{_short(row.get('peak_gib', ''))} | {row['note']} |"
            )
        lines += [f"| {section} | failed | | | | | {error} |" for section, error in self.errors.items()]
        return "\n".join(lines)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> dict[str, float]:
        return {"peak_gib": torch.cuda.max_memory_allocated() / GIB} if self.device.type == "cuda" else {}

    def model(self, family: Family) -> PreTrainedModel:
        """A fresh one, made where it will run: random numbers for half a billion weights take seconds on a CPU."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return family.make(self.sizes)

    def batch(self, family: Family, count: int) -> Batch:
        torch.manual_seed(1)
        return {name: tensor.to(self.device) for name, tensor in family.inputs(self.sizes, count).items()}


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def environment() -> dict[str, str]:
    versions = {each.__name__: each.__version__ for each in (mmhf, torch, transformers, accelerate, datasets, timm)}
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cuda = str(torch.version.cuda)
    return {"card": card, "python": platform.python_version(), "cuda": cuda, "cpus": str(os.cpu_count()), **versions}


class OneBatch(Dataset[int]):
    """So many times the same batch, which lies on the device already: what is timed is computing."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Clock(TrainerCallback):
    """Times the steps behind a warm-up; the device is waited for at both ends only."""

    def __init__(self, bench: Bench, warm_up: int) -> None:
        self.bench = bench
        self.warm_up = warm_up
        self.started = self.first_step = self.begun = self.ended = 0.0
        self.num_steps = 0

    @property
    def step_seconds(self) -> float:
        return (self.ended - self.begun) / self.num_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (1, self.warm_up, state.max_steps):
            self.bench.synchronize()
        now = time.perf_counter()
        if state.global_step == 1:
            self.first_step = now - self.started
        if state.global_step == self.warm_up:
            self.begun = now
        if state.global_step == state.max_steps:
            self.ended, self.num_steps = now, state.global_step - self.warm_up


def arguments(bench: Bench, **values: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "bf16": True, "save_strategy": "no", "logging_steps": 10_000, "learning_rate": 1e-4, "report_to": "none",
        "weight_decay": 0.01, "dataloader_pin_memory": False, "disable_tqdm": True, "log_level": "error",
        "remove_unused_columns": False, "use_cpu": bench.device.type == "cpu", "per_device_train_batch_size": 1,
    }  # fmt: skip
    return TrainingArguments(**{"output_dir": str(bench.folder / "run"), **defaults, **values})


def time_training(
    bench: Bench, family: Family, model: PreTrainedModel, batch: Batch, *, accumulation: int = 1, **values: Any
) -> Clock:
    """Train on one batch through the family's trainer: a warm-up, then the timed steps."""
    warm_up = 1 if accumulation > 1 or bench.sizes.is_dry else WARM_UP
    num_steps = warm_up + (min(bench.sizes.steps, 3) if accumulation > 1 else bench.sizes.steps)
    stage = Stage(name="all", steps=num_steps, train=_selectors(family))
    plan = StagePlan.build(model, [stage], steps_per_epoch=num_steps, learning_rate=1e-4)
    clock = Clock(bench, warm_up)
    trainer = family.trainer_class(
        model=model,
        args=arguments(bench, max_steps=num_steps, gradient_accumulation_steps=accumulation, **values),
        plan=plan,
        train_dataset=OneBatch(num_steps * accumulation),
        data_collator=lambda rows: batch,
        callbacks=[clock],
    )
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return clock


def _selectors(family: Family) -> str | list[str]:
    return family.trained if isinstance(family.trained, str) else list(family.trained)


def count_flops(bench: Bench, family: Family, count: int) -> int:
    """Of one step over so many samples: forward, and backward to what trains. Counted over a few, and multiplied."""
    model, few = bench.model(family), min(count, 8)
    model.set_attn_implementation("eager")  # plain matrix products, which are counted with grouped heads, too
    plan = StagePlan.build(model, [Stage(name="all", steps=1, train=_selectors(family))], steps_per_epoch=1)
    model.requires_grad_(True)
    apply_freezing(model.train(), plan.partition, plan.stages[0].curves)
    more = {"return_loss": True} if family.trainer_class is ContrastiveTrainer else {}
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(**bench.batch(family, few), **more).loss
        loss.backward()
    return counter.get_total_flops() * count // few


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
        bench.errors[f"{section}: {name}"] = _one_line(error)
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


@contextlib.contextmanager
def released(bench: Bench) -> Iterator[None]:
    """Give back what a measurement took, whatever became of it."""
    try:
        yield
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


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


def equality(bench: Bench) -> None:
    """Loss and gradients of one fp32 step, on the CPU and on the device, TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sizes = bench.sizes
    if not sizes.is_dry:  # a language model of 4 layers, or the CPU takes half a minute
        sizes = dataclasses.replace(sizes, qwen={**sizes.qwen, "num_hidden_layers": 4})
    for name, family in FAMILIES.items():
        with released(bench):
            torch.manual_seed(0)
            model, batch = family.make(sizes).train(), family.inputs(sizes, 4)
            more = {"return_loss": True} if family.trainer_class is ContrastiveTrainer else {}
            found = {}
            for device in ("cpu", bench.device.type):
                there = copy.deepcopy(model).to(device)
                loss = there(**{key: value.to(device) for key, value in batch.items()}, **more).loss
                loss.backward()
                gradients = {
                    key: value.grad.cpu() for key, value in there.named_parameters() if value.grad is not None
                }
                found[device] = (loss.item(), gradients)
            (loss, gradients), (other_loss, others) = found["cpu"], found[bench.device.type]
            largest = max(gradient.abs().max().item() for gradient in gradients.values())
            difference = max((others[key] - value).abs().max().item() for key, value in gradients.items())
            bench.add(
                "CPU = GPU",
                name,
                f"fp32, batch 4: loss differs by {abs(loss - other_loss) / abs(loss):.1e} of itself, gradients by at "
                f"most {difference / largest:.1e} of the largest, over {len(gradients)} tensors",
                loss_difference=abs(loss - other_loss) / abs(loss),
                gradient_difference=difference / largest,
            )


class StopAt(TrainerCallback):
    """Ends a run as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def staged_run(bench: Bench, name: str, folder: Path, stop_at: int | None = None, resume: bool = False) -> dict:
    """Six steps in two stages with a checkpoint after each; the weights it ends with."""
    family, sizes = FAMILIES[name], dataclasses.replace(TINY, is_dry=bench.sizes.is_dry)
    torch.manual_seed(0)
    model = family.make(sizes)
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(24)), "id": [str(row) for row in range(24)]}))

    def collate(batch: list[dict[str, Any]]) -> Batch:
        with torch.random.fork_rng([]):
            torch.manual_seed(batch[0]["index"])
            return family.inputs(sizes, len(batch))

    stages = [Stage(name="head", steps=3, train=list(family.head)), Stage(name="all", steps=3)]
    plan = StagePlan.build(model, stages, steps_per_epoch=6, learning_rate=1e-3)
    trainer = family.trainer_class(
        model=model,
        args=arguments(
            bench,
            output_dir=str(folder),
            max_steps=6,
            save_strategy="steps",
            save_steps=4 if bench.sizes.is_dry else 1,
            per_device_train_batch_size=4,
        ),
        plan=plan,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[] if stop_at is None else [StopAt(stop_at)],
    )
    with contextlib.suppress(InterruptedError):
        trainer.train(resume_from_checkpoint=resume or None)
    return {key: value.detach().cpu() for key, value in model.state_dict().items()}


def resuming(bench: Bench) -> None:
    """A run stopped in its second stage and resumed ends with the same bits as one that was not."""
    for is_deterministic in (False,) if bench.sizes.is_dry else (False, True):  # a CPU knows one way
        torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = False
        equal = {}
        for name in FAMILIES:
            folder = bench.folder / f"resume {name} {is_deterministic}"
            whole = staged_run(bench, name, folder / "whole")
            again = whole if bench.sizes.is_dry else staged_run(bench, name, folder / "again")
            staged_run(bench, name, folder / "stopped", stop_at=4)
            resumed = staged_run(bench, name, folder / "stopped", resume=True)
            equal[name] = [all(torch.equal(whole[key], other[key]) for key in whole) for other in (again, resumed)]
            shutil.rmtree(folder)
        bench.add(
            "resume",
            "deterministic algorithms" if is_deterministic else "as by default",
            "; ".join(
                f"{name}: resumed {'equal' if resumed else 'DIFFERS'}, repeated {'equal' if again else 'DIFFERS'}"
                for name, (again, resumed) in equal.items()
            ),
            resumed_equal=sum(resumed for _, resumed in equal.values()),
        )
    torch.use_deterministic_algorithms(False)


def write_text_encoder(folder: Path, texts: list[str]) -> None:
    """A small BERT with a tokenizer of these texts' words."""
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **_NARROW)).save_pretrained(folder)


def road_recipes(bench: Bench) -> dict[str, dict[str, Any]]:
    """A small recipe of each family over the drawings that the package carries: head first, then everything."""
    text_folder = bench.folder / "bert"
    write_text_encoder(text_folder, ["a cat", "a dog", "an apple", "red", "car", "face"])
    vision = {"backbone": "timm/test_efficientnet", "pretrained": False}
    language = {
        "backbone": "qwen3", "pretrained": False, "tokenizer": {"vocab_size": 600},
        "config": {**_NARROW, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
    }  # fmt: skip
    recipes = {
        "image-text-classification": (
            {"vision": vision, "text": {"backbone": str(text_folder), "pooling": "mean"}, "embedding_dim": 16},
            {"max_length": 16},
            ["fusion", "head"],
        ),
        "image-classification": ({"vision": vision}, {}, ["head"]),
        "contrastive": (
            {
                "vision": {"patch_size": 16, "width": 32, "layers": 2, "heads": 2, "pooling": "avg"},
                "text": {"width": 32, "layers": 2, "heads": 2, "pooling": "eot", "vocab_size": 600},
                "embedding_dim": 16,
            },
            {"max_length": 32},
            ["projections"],
        ),
        "image-captioning": (
            {"vision": {**vision, "features": "patches"}, "language": language, "projector": {"hidden_dims": [32]}},
            {"max_length": 16},
            ["projector"],
        ),
    }
    made, steps = {}, 1 if bench.sizes.is_dry else 3
    for task, (model, data, head) in recipes.items():
        made[task] = {
            "task": task,
            "model": model,
            "data": {"source": "sample", "image_size": 64, "limit": 48 if bench.sizes.is_dry else 96, **data},
            "training": {
                "output_dir": str(bench.folder / f"road {task}"), "per_device_train_batch_size": 16,
                "report_to": "none", "bf16": True, "logging_steps": 2, "disable_tqdm": True,
                "use_cpu": bench.device.type == "cpu",
            },
            "stages": [
                {"name": "head", "steps": steps, "train": head},
                {"name": "all", "steps": steps, "train": "all", "learning_rate": 1e-3},
            ],
            "evaluation": {"splits": ["test"]},
            "cache": {"mode": "on", "folder": str(bench.folder / "features")},
        }  # fmt: skip
    return made


def road(bench: Bench) -> None:
    """`mmhf train` over two stages, then pipelines of what came out, on the device and on the CPU."""
    for task, values in road_recipes(bench).items():
        begun = time.perf_counter()
        path, run_dir = bench.folder / f"{task}.yaml", Path(values["training"]["output_dir"])
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            train_recipe(path)
            trained = time.perf_counter() - begun
            devices = dict.fromkeys(("cpu", bench.device.type))  # one of them in a dry run
            found = [ask_pipeline(task, run_dir, device) for device in devices]
            metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
            assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float)), metrics
        except Exception as error:  # noqa: BLE001  (the other tasks shall run)
            bench.errors[f"road, {task}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc()
            continue
        if isinstance(found[0], list):
            same = f"scores on CPU and device differ by at most {np.abs(np.subtract(found[0], found[-1])).max():.1e}"
        else:
            same = "the same captions" if found[0] == found[-1] else f"other captions: {found}"
        bench.add("road", task, f"trained, evaluated and reported in {trained:.1f} s; its pipeline: {same}")


def ask_pipeline(task: str, folder: Path, device: Any) -> Any:
    """What a released model's own pipeline says of two images: scores by label, or captions."""
    images = [Image.fromarray(np.full((64, 64, 3), 40 * number, dtype=np.uint8)) for number in (1, 5)]
    names = {"contrastive": "zero-shot-image-classification"}
    pipe = mmhf.pipeline(names.get(task, task), model=str(folder), device=device)
    if task == "image-captioning":
        return str(pipe(images, max_new_tokens=5))
    if task == "contrastive":
        answers = pipe(images, candidate_labels=["a cat", "a dog", "a car"])
    elif task == "image-text-classification":
        answers = pipe(image=images, text=["a cat", "a dog"])
    else:
        answers = pipe(images, top_k=100)
    return [[entry["score"] for entry in sorted(answer, key=lambda each: each["label"])] for answer in answers]


SECTIONS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "training": (families, 90),
    "caching": (caching, 40),
    "data": (waiting, 70),
    "stored": (stored, 40),
    "equality": (equality, 60),
    "resume": (resuming, 60),
    "road": (road, 80),
    "generation": (generation, 25),
    "compiled": (compiled, 180),
}
"""In order of worth: what runs, and the seconds that it may take."""


def run_section(bench: Bench, name: str, limit: float) -> None:
    """Run a section, and keep its error where it fails or takes too long."""
    section, allowed = SECTIONS[name]
    begun = time.perf_counter()

    def stop(*_: Any) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    if not bench.sizes.is_dry:
        signal.alarm(max(int(min(limit, allowed)), 1))
    try:
        section(bench)
    except OutOfTime:
        bench.errors[name] = f"out of time after {time.perf_counter() - begun:.0f} s"
    except Exception as error:  # noqa: BLE001  (the other sections shall run)
        bench.errors[name] = _one_line(error)
        traceback.print_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        torch._dynamo.reset()
        gc.collect()
    bench.seconds[name] = time.perf_counter() - begun
    print(f"[{name}] {bench.seconds[name]:.1f} s {bench.errors.get(name, '')}", flush=True)
    bench.write()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a GPU makes of mmhf.")
    parser.add_argument("--json", type=Path, help="where to write all that was found")
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU, with tiny shapes")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections only")
    parser.add_argument("--seconds", type=float, default=360, help="what all sections together may take")
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --dry-run runs everything on the CPU with tiny shapes")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mmhf-gpu-") as folder:
        bench = Bench(TINY if options.dry_run else TRUE, options.json, Path(folder))
        print(json.dumps(environment()), flush=True)
        for name in options.only or SECTIONS:
            run_section(bench, name, options.seconds - (time.perf_counter() - begun))
    print(f"\n{bench.table()}\n\n{time.perf_counter() - begun:.0f} s")
    return len(bench.errors)


if __name__ == "__main__":
    sys.exit(main())
