"""Show which version of a model was trained from which, with the settings and numbers that changed.

mmhf lineage releases/fakeddit
mmhf lineage ORG/NAME --metric test_f1_macro
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", help="folder that holds the versions of a model, or ORG/NAME on the Hub")
    parser.add_argument("--metric", action="append", help="number to show, such as test_f1_macro; may be repeated")
