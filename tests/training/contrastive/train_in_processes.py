"""Train tiny dual encoders in this process, one of several, and write down losses, gradients and weights.

python train_in_processes.py OUTPUT KIND...
"""

from __future__ import annotations

import sys
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import torch  # isort: skip
from conftest import train
from transformers import TrainingArguments


def main(output: str, *kinds: str) -> None:
    args = TrainingArguments(output, use_cpu=True)
    trained = {kind: train(Path(output), kind, args.world_size) for kind in kinds}
    if args.process_index == 0:
        torch.save(trained, Path(output) / "trained.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
