"""Compute and store, ahead of training, what the frozen encoders of a recipe make of each sample.

    mmhf cache quickstart/fusion
    accelerate launch --multi_gpu --num_processes 4 -m mmhf cache fakeddit/v1.7

Training then finds it, as it finds what other runs with the same encoders have stored. A run that was stopped goes on
where it was. Encoders that a stage trains before another one freezes them are left to training.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("overrides", nargs="*", help="key=value, such as cache.dtype=float16")
