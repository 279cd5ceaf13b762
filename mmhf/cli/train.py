"""Train a recipe, evaluate the model, and release it if the recipe says so.

mmhf train quickstart/fusion training.learning_rate=1e-4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainerCallback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("overrides", nargs="*", help="key=value, such as training.learning_rate=1e-4")
    parser.add_argument("--resume", action="store_true", help="resume the latest unfinished run of this recipe")
    parser.add_argument("--allow-changes", action="store_true", help="continue even though the recipe has changed")
    parser.add_argument(
        "--more",
        type=float,
        metavar="EPOCHS",
        help="train the last stage this many epochs longer than the recipe says; also resumes a finished run",
    )


def run(options: argparse.Namespace, callbacks: Sequence[TrainerCallback] = ()) -> None:
    from mmhf.verbs.train import train

    train(
        options.recipe,
        options.overrides,
        resume=options.resume,
        allow_changes=options.allow_changes,
        more=options.more,
        callbacks=callbacks,
    )
