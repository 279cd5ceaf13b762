"""Search for the best values of recipe keys. Start it several times to run several trials at once.

    mmhf sweep quickstart/image_classifier space.yaml

    metric: f1_macro                       # of the validation split
    trials: 20
    pruner: {kind: median}
    space:
      training.weight_decay: {low: 1e-5, high: 1e-1, log: true}
      stages.0.epochs: {low: 1, high: 4}
      model.vision.pooling: [avg, max]

Processes that name the same study, here or on machines that share its storage, divide its trials among themselves; a
killed one's trial is run by another, or when the sweep is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("space", help="YAML file with the search space")
    parser.add_argument("overrides", nargs="*", help="key=value for all trials, such as data.limit=1000")
    parser.add_argument("--study", metavar="NAME", help="default: RECIPE_SPACE")
    parser.add_argument("--storage", help="journal file, or URL of a database; default: journal.log in the folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: outputs/STUDY")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials over all processes; absent: the space's"
    )
    parser.add_argument(
        "--stale-after", type=float, default=300.0, metavar="SECONDS",
        help="a trial of another machine that is silent for this long is taken over; default 300",
    )  # fmt: skip
