"""What campaigns share: a small world to do damage in, verbs that run in forked children, and the table of verdicts.

Importing takes longer than a tiny run; a forked child needs no import. So this process must have one thread when it
forks, and OMP_NUM_THREADS must be 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from PIL import Image

import mmhf.evaluation.report.classification
import mmhf.evaluation.report.retrieval
import mmhf.sweep.outcome
import mmhf.sweep.trial_process
import mmhf.verbs._table_job
import mmhf.verbs.cache
import mmhf.verbs.embed
import mmhf.verbs.evaluate
import mmhf.verbs.predict
import mmhf.verbs.release
import mmhf.verbs.search
import mmhf.verbs.sweep
import mmhf.verbs.train
from mmhf.cli import main

TRACEBACK = "Traceback (most recent call last)"
_ROWS = 16
_LONGEST = 300.0


@dataclass
class Tally:
    """Verdicts of one campaign: `same`, the result is what it would have been; `told`, in a line; or neither."""

    name: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("same", "told", "silent", "traceback"), 0))
    notes: list[str] = field(default_factory=list)
    all: ClassVar[list[Tally]] = []
    """Those of this process, so that a campaign that is stopped can still be told."""

    def __post_init__(self) -> None:
        self.all.append(self)

    def count(self, verdict: str, note: str) -> None:
        """Count a trial; what should not be is noted."""
        self.counts[verdict] += 1
        if verdict in ("silent", "traceback"):
            self.notes.append(f"{verdict}: {note}")

    @property
    def tried(self) -> int:
        """Trials so far."""
        return sum(self.counts.values())


def table(tallies: Sequence[Tally]) -> str:
    """The tallies as lines of a Markdown table."""
    lines = ["| campaign | tried | same result | told | silent | traceback |", "|---|---|---|---|---|---|"]
    for tally in tallies:
        lines.append("| " + " | ".join([tally.name, str(tally.tried), *map(str, tally.counts.values())]) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """How a child ended: exit code, or the negative signal, and what it printed."""

    code: int
    output: str
    seconds: float

    def verdict(self, is_same: bool, name: str = "") -> str:
        """The verdict on a verb that ran to its end.

        Args:
            is_same (`bool`): Whether what it made is what it would have been.
            name (`str`): A file that a warning may name instead.
        """
        if TRACEBACK in self.output:
            return "traceback"
        if self.code != 0:
            return "told" if "error: " in self.output else "silent"
        return "same" if is_same else "told" if name and name in self.output else "silent"


@dataclass(frozen=True)
class Disturbance:
    """What happens to a child.

    Args:
        signals (`tuple[int, ...]`): Sent after `delay` seconds, one after the other.
        delay (`float`): Seconds.
        file_size (`int`, *optional*): No file may become larger, as when the disk is full in the middle of it.
    """

    signals: tuple[int, ...] = ()
    delay: float = 0.0
    file_size: int | None = None


def run(arguments: Sequence[object], folder: Path, disturbance: Disturbance | None = None) -> Result:
    """Run `mmhf VERB ...` in a forked child whose working directory is a folder."""
    disturbance, started = disturbance or Disturbance(), time.monotonic()
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_child(arguments, folder, disturbance, write)
    os.close(write)
    output, signals = [], list(disturbance.signals)
    with contextlib.closing(os.fdopen(read, "rb", buffering=0)) as stream:
        while True:
            wait = max(started + disturbance.delay - time.monotonic(), 0) if signals else 0.5
            if select.select([stream], [], [], wait)[0]:
                if not (part := stream.read(65536)):
                    break
                output.append(part)
            elif signals:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signals.pop(0))
            elif time.monotonic() - started > _LONGEST:
                os.killpg(pid, signal.SIGABRT)
    _, status = os.waitpid(pid, 0)
    text = b"".join(output).decode(errors="replace")
    return Result(os.waitstatus_to_exitcode(status), text, time.monotonic() - started)


def _be_child(arguments: Sequence[object], folder: Path, disturbance: Disturbance, write: int) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        os.environ["MMHF_FEATURES"] = str(folder / "features")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which who started us may have had ignored
        if disturbance.file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (disturbance.file_size, resource.RLIM_INFINITY))
        code = main([str(argument) for argument in arguments])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException:  # noqa: BLE001  (the child ends here, whatever it was)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def quick_verbs() -> Iterator[None]:
    """No plots, small shards, and trials of sweeps that are forked: for the children of this process."""
    import multiprocessing

    original = mmhf.verbs._table_job.job_settings
    patches = [
        (mmhf.evaluation.report.classification, "save_classification_plots", lambda *args, **kwargs: {}),
        (mmhf.sweep.outcome, "_draw", lambda *args, **kwargs: {}),
        (mmhf.sweep.trial_process, "_CONTEXT", multiprocessing.get_context("fork")),
        (mmhf.verbs.sweep, "preload", lambda module: None),
    ]
    for verb in (mmhf.verbs.predict, mmhf.verbs.embed):
        small = lambda options: dataclasses.replace(original(options), shard_rows=4, batch_size=2, progress=False)  # noqa: E731
        patches.append((verb, "job_settings", small))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class World:
    """Sixteen pictures, a classifier and a dual encoder trained on them, and all that the verbs make of these.

    Args:
        folder (`Path`): An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.durations: dict[str, float] = {}
        _write_data(folder)
        self.recipe = _write(folder / "ic.yaml", _classifier(folder))
        self.pairs = _write(folder / "du.yaml", _dual_encoder(folder))
        space = {"metric": "accuracy", "sampler": "random", "trials": 2}
        space["space"] = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}
        self.space = _write(folder / "space.yaml", space)
        self.expected: dict[str, str] = {}
        (folder / "whole").mkdir()
        for recipe, name in ((self.pairs, "pairs"), (self.recipe, "run")):
            self._run(["train", recipe, f"training.output_dir={name}"], folder)
        for verb in ("train", "cache", "evaluate", "predict", "embed", "sweep", "release"):
            result = self._run(self.arguments(verb), folder / "whole")
            self.durations[verb] = result.seconds
            self.expected[verb] = self.fingerprint(verb, folder / "whole")

    def _run(self, arguments: Sequence[object], folder: Path) -> Result:
        result = run(arguments, folder)
        if result.code != 0:
            raise RuntimeError(f"{arguments}: {result.code}\n{result.output}")
        return result

    def arguments(self, verb: str) -> list[object]:
        """A verb's command line, which writes below the working directory."""
        model, pairs, data = self.folder / "run", self.folder / "pairs", self.folder / "table.csv"
        return {
            "train": ["train", self.recipe, "training.output_dir=run"],
            "cache": ["cache", self.recipe],
            "evaluate": ["evaluate", model, "--output", "evaluated"],
            "predict": ["predict", model, "--input", data, "--output", "out.csv"],
            "embed": ["embed", pairs, "--input", self.folder / "pairs.csv", "--output", "out.parquet"],
            "sweep": ["sweep", self.recipe, self.space, "--output", "sweep", "training.max_steps=2", "~stages"],
            "release": ["release", model, "--repo", "releases", "--version", "1.0"],
            "search": ["search", "out.parquet", "--text", "a red square", "--top", "3", "--output", "found.html"],
        }[verb]

    def fingerprint(self, verb: str, folder: Path) -> str:
        """What a verb made, without times."""
        digest = hashlib.sha256()
        if verb == "train":
            for name in ("run/model.safetensors", "run/metrics.json"):
                digest.update((folder / name).read_bytes())
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
