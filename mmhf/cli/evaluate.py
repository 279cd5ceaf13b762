"""Measure a run or a release on any split of any data, with the preprocessing that the model was trained with.

mmhf evaluate releases/quickstart@v0.1
mmhf evaluate releases/fakeddit@v1.6 fakeddit/v1.7 data.limit=1000 --split test --output outputs/check
mmhf evaluate --predictions captions.jsonl --references captions_val2014.json --output outputs/check
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a run folder, a release, or REPO@vX.Y")
    parser.add_argument(
        "recipe", nargs="?", help="recipe whose `data:` is used; absent: the one that trained the model"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, such as data.path=data/other")
    parser.add_argument("--split", action="append", help="train, validation or test; may be repeated")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--output", type=Path, help="folder for metrics.json, plots and report.html")
    captions = parser.add_argument_group("captions made elsewhere, instead of a model")
    captions.add_argument(
        "--predictions", type=Path, help="table with one caption per image, and optionally its references"
    )
    captions.add_argument("--references", type=Path, help="table with their references, such as COCO's annotations")
    captions.add_argument("--images", type=Path, help="folder of their images, for the gallery and CLIPScore")
    captions.add_argument("--clip", help="a CLIP (folder or Hub repository) that measures CLIPScore")
