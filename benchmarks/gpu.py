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
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the sums of cuBLAS repeat
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from on_gpu import proof, speed  # (first: mmhf makes torchvision importable beside a CPU build of torch)
from on_gpu.bench import Bench, environment, one_line
from on_gpu.families import TINY, TRUE

import datasets  # isort: skip
import torch  # isort: skip
import transformers  # isort: skip


class OutOfTime(BaseException):
    """A section took longer than it may; no `except Exception` on the way may keep it."""


SECTIONS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "training": (speed.families, 90),
    "caching": (speed.caching, 40),
    "data": (speed.waiting, 70),
    "stored": (speed.stored, 40),
    "equality": (proof.equality, 60),
    "resume": (proof.resuming, 60),
    "road": (proof.road, 80),
    "generation": (speed.generation, 25),
    "compiled": (speed.compiled, 180),
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
        bench.errors[name] = one_line(error)
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
