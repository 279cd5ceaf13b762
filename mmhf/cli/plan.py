"""Check a recipe, and show what it would do: values and where they come from, rows, stages, rates, steps, memory.

    mmhf plan quickstart/fusion training.per_device_train_batch_size=64
    mmhf plan --schema > recipe.schema.json

What training would refuse is an error: images that are not there, labels that are ids, batches larger than the data.
Needs neither GPU nor weights; of the Hub it fetches configuration files at most, and none for timm's models.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, such as training.learning_rate=1e-4")
    parser.add_argument("--all", action="store_true", help="also what is as by default, and each parameter group")
    parser.add_argument(
        "--time", action="store_true", help="also make a few steps of each stage, to say how long it takes"
    )
    parser.add_argument("--schema", action="store_true", help="write the JSON Schema of recipes, for editors")
