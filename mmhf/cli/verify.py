"""Check a release: the hash of each file, and its numbers by evaluating it again.

mmhf verify releases/fakeddit@v1.8
mmhf verify ORG/NAME@v1.8 data.path=data/fakeddit --tolerance 1e-3
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a release: REPO@vX.Y, its folder, or ORG/NAME@vX.Y on the Hub")
    parser.add_argument("overrides", nargs="*", help="location of the data, such as data.path=data/other")
    parser.add_argument(
        "--split", action="append", help="validation or test; may be repeated; absent: all on the card"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of a number")
    parser.add_argument("--batch-size", type=int, default=32)
