"""Compare two versions: settings, numbers, sizes, data, environment.

mmhf diff releases/fakeddit@v1.7 releases/fakeddit@v1.8
mmhf diff ORG/NAME@v1.7 OTHER/NAME@v1.8
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", help="REPO@vX.Y, a release folder, or ORG/NAME@vX.Y on the Hub")
    parser.add_argument("new", help="the other one")
