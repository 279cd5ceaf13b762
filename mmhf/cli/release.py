"""Keep a finished run as an immutable version of a model, in a folder or on the Hub.

mmhf release outputs/quickstart --repo releases/quickstart --version 0.2
mmhf release outputs/fakeddit --repo ORG/NAME --version 1.8 --best-metric test_f1_macro
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--repo", help="folder that holds the versions of the model, or ORG/NAME on the Hub")
    parser.add_argument("--version", help="the new version, such as 1.8")
    parser.add_argument(
        "--push",
        action=argparse.BooleanOptionalAction,
        help="release to the Hub, or not; absent: to the Hub if the repo is ORG/NAME and no folder has that name",
    )
    parser.add_argument("--private", action="store_true", default=None, help="create the repository as a private one")
    parser.add_argument("--channel", help="branch to move to this version instead of main, such as experimental")
    parser.add_argument(
        "--best-metric", help="keep the tag `best` at the version that is best by this, such as test_f1_macro"
    )
    parser.add_argument("--card", type=Path, help="YAML file with the keys of `release.card`")
