"""The table that is filled, and how a model's steps on a batch are timed and their FLOPs counted."""

import contextlib
import gc
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import accelerate  # isort: skip
import datasets
import timm
import torch
import transformers
from on_gpu.families import Batch, Family, Sizes
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.weights import apply_freezing

GIB = 2**30
WARM_UP = 3


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


def one_line(error: Exception) -> str:
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


@contextlib.contextmanager
def released(bench: Bench) -> Iterator[None]:
    """Give back what a measurement took, whatever became of it."""
    try:
        yield
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


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
