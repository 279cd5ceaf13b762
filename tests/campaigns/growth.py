"""Memory does not grow with rows, classes or steps beyond what is said here, and no file stays open."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import TrainerCallback
from world import World

import mmhf
from mmhf.inference import JobSettings, predict_table

_MB = 2**20
_STEADY = 24 * _MB
"""What an allocator may keep for itself: no growth is seen below."""


@dataclass(frozen=True)
class Growth:
    """What a process had more of, in the large case than in the small one.

    Args:
        what (`str`): What was done, and how often, in both cases.
        grown, allowed (`float`): In `unit`.
        unit (`str`): Such as MB.
    """

    what: str
    grown: float
    allowed: float
    unit: str
    all: ClassVar[list[Growth]] = []

    def __post_init__(self) -> None:
        self.all.append(self)

    @property
    def is_too_large(self) -> bool:
        """Whether that is a leak."""
        return self.grown > self.allowed

    def __str__(self) -> str:
        return f"| {self.what} | {self.grown:.1f} {self.unit} | {self.allowed:.1f} {self.unit} |"


def table_of(growths: list[Growth]) -> str:
    """The measurements as lines of a Markdown table."""
    return "\n".join(["| from, to | grown by | allowed |", "|---|---|---|", *map(str, growths)])


def rows_campaign(world: World, scratch: Path, few: int, many: int) -> list[Growth]:
    """Predict and evaluate tables of few and of many rows.

    Args:
        world ([`World`]): Its model and its pictures, which the rows take turns to show.
        scratch (`Path`): For tables.
        few, many (`int`): Rows.
    """
    peaks: dict[str, list[int]] = {"predict": [], "evaluate": []}
    for rows in (few, many):
        table = _write_rows(world, f"{rows}.csv", rows, ("red", "green"))
        output = scratch / f"{rows}-out.csv"
        peaks["predict"].append(
            _in_child(
                lambda table=table, output=output: predict_table(
                    world.folder / "run", table, output, JobSettings(batch_size=64, progress=False)
                )
            )
        )
        peaks["evaluate"].append(_in_child(lambda table=table: _evaluate(world.folder / "run", world, table)))
    what = f"{few:,} and {many:,} rows"
    # Evaluating holds labels, places, and two probabilities with what metrics sort them by.
    allowed = {"predict": _STEADY, "evaluate": _STEADY + 400 * (many - few)}
    return [
        Growth(f"{verb}, {what}", (large - small) / _MB, allowed[verb] / _MB, "MB")
        for verb, (small, large) in peaks.items()
    ]


def classes_campaign(world: World, scratch: Path, classes: int, few: int, many: int) -> Growth:
    """Evaluate few and many rows with many classes, where rows × classes is what counts."""
    names = [f"kind {number}" for number in range(classes)]
    train = _write_rows(world, "many-train.csv", 2 * classes, names)
    recipe = yaml.safe_load(world.recipe.read_text())
    recipe["data"].update(path=str(train), find_duplicates="never", split={"validation": 0.0, "test": 0.0})
    recipe["training"].update(max_steps=1, output_dir=str(scratch / "many"), save_strategy="no", eval_strategy="no")
    recipe.update(stages=None, cache="off", evaluation={"splits": ["train"]})
    (scratch / "many.yaml").write_text(yaml.safe_dump({name: value for name, value in recipe.items() if value}))
    _in_child(lambda: mmhf.train(scratch / "many.yaml"))
    peaks = []
    for rows in (few, many):
        table = _write_rows(world, f"many-{rows}.csv", rows, names)
        peaks.append(_in_child(lambda table=table: _evaluate(scratch / "many", world, table)))
    allowed = _STEADY + 6 * (many - few) * classes * 4  # six times what their logits take
    what = f"evaluate, {classes} classes, {few:,} and {many:,} rows"
    return Growth(what, (peaks[1] - peaks[0]) / _MB, allowed / _MB, "MB")


def steps_campaign(world: World, scratch: Path, few: int, many: int, *, workers: int = 0) -> list[Growth]:
    """Train for many steps, with evaluations and checkpoints on the way, and compare with the first few."""
    stages = [{"name": "head", "steps": few // 2, "train": ["head"]}]
    stages += [{"name": "all", "steps": many - few // 2, "train": "all"}]
    recipe = yaml.safe_load(world.recipe.read_text())
    every = max(1, many // 8)
    recipe["training"].update(
        output_dir=str(scratch / f"steps-{workers}"), logging_steps=10, save_steps=every, save_total_limit=2,
        eval_strategy="steps", eval_steps=every, dataloader_num_workers=workers,
    )  # fmt: skip
    recipe.update(stages=stages)
    path = scratch / f"steps-{workers}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    seen = scratch / f"seen-{workers}"

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (few, many - 1):
                gc.collect()
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with seen.open("a") as stream:
                    stream.write(f"{pages * resource.getpagesize()} {len(os.listdir('/proc/self/fd'))}\n")

    _in_child(lambda: mmhf.train(path, callbacks=[Look()]))
    (memory, files), (later, files_later) = ([int(word) for word in line.split()] for line in seen.open())
    what = f"train, steps {few:,} and {many - 1:,}" + (f", {workers} worker" if workers else "")
    return [
        Growth(what, (later - memory) / _MB, _STEADY / _MB, "MB"),
        Growth(what, files_later - files, 0, "open files"),
    ]


def _evaluate(model: Path, world: World, table: Path) -> None:
    small = f"data.train={world.folder / 'table.csv'}"
    if model.name == "many":
        small = f"data.train={world.folder / 'many-train.csv'}"
    overrides = ["data.path=null", small, f"data.test={table}", "data.find_duplicates=never", "cache=off"]
    mmhf.evaluate(model, overrides=overrides, splits=["test"], batch_size=64)


def _write_rows(world: World, name: str, rows: int, labels: Sequence[str]) -> Path:
    path = world.folder / name
    lines = [f"{row % 16}.jpg,{labels[row % len(labels)]}" for row in range(rows)]
    path.write_text("image,label\n" + "\n".join(lines) + "\n")
    return path


def _in_child(action: Callable[[], object]) -> int:
    """Peak memory in bytes of a forked child that does this; what it prints is shown when it fails."""
    with tempfile.TemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                action()
                code = 0
            except BaseException:  # noqa: BLE001  (the child ends here, whatever it was)
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        if status:
            log.seek(0)
            raise RuntimeError(f"a child ended with {status}: {log.read().decode(errors='replace')[-3000:]}")
    return usage.ru_maxrss * 1024
