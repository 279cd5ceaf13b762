"""Try a range of learning rates for a stage in one short run, and plot the loss over them.

    mmhf find-lr quickstart/fusion --stage head

Trains a throw-away copy of the model as the run begins, while the rate grows from step to step; groups keep the ratios
of their rates. Nothing is kept but the picture.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("overrides", nargs="*", help="key=value, such as data.limit=1000")
    parser.add_argument("--stage", metavar="NAME", help="the stage to try; absent: the first")
    parser.add_argument("--from", dest="lowest", type=float, default=1e-7, metavar="RATE", help="default 1e-7")
    parser.add_argument("--to", dest="highest", type=float, default=1.0, metavar="RATE", help="default 1")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="optimizer steps, default 100")
    parser.add_argument("--output", metavar="DIR", help="folder for the plot; default outputs/RECIPE/find_lr")
