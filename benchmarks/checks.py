"""What checks cost: the share of a training step that watching its loss takes, and the hash of weights at start.

The step is that of `trainer_step.py`, and both are times of one thread, so that other programs do not count. The aims:
at most 1 % of a step, and 0.5 s a gigabyte.

    OMP_NUM_THREADS=1 python benchmarks/checks.py [ROUNDS] [MEGABYTES]
"""

import copy
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from trainer_step import BATCH, STEPS, make_model, time_trainer

import mmhf.damage
from mmhf.data.datasets import RowDataset
from mmhf.training.loss_watch import LossWatch
from mmhf.training.trainer import MMTrainer


def timed(owner, name, seconds):
    """Add the time of each call to `seconds`."""
    method = getattr(owner, name)

    def call(*args, **kwargs):
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.thread_time() - began)

    setattr(owner, name, call)


def step_share(rounds):
    """Percent of the time of training steps that their checks take."""
    checks, steps = [], []
    for name in ("begin_step", "add", "look"):
        timed(LossWatch, name, checks)
    timed(MMTrainer, "_run_epoch", steps)
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(BATCH * STEPS))}))
    model = make_model()
    for _ in range(rounds):
        time_trainer(copy.deepcopy(model), rows)
    return 100 * sum(checks) / sum(steps)


def hash_seconds(rounds, megabytes):
    """Seconds in which a folder with a gigabyte of weights is compared with its `complete`."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (folder / "model.safetensors").open("wb") as file:
            for number in range(megabytes):
                file.write(bytes([number % 256]) * 2**20)
        mmhf.damage.mark_complete(folder)
        for _ in range(rounds):
            mmhf.damage._hash_of_large.cache_clear()
            began = time.thread_time()
            mmhf.damage.refuse_damage(folder)
            found.append(time.thread_time() - began)
    return min(found) * 1000 / megabytes


def main(rounds=3, megabytes=1024):
    torch.set_num_threads(1)
    print(f"weights compared at start: {hash_seconds(rounds, megabytes):.2f} s a gigabyte")
    print(f"loss watched at each step: {step_share(rounds):.3f} % of it")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
