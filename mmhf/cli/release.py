"""Keep a finished run as an immutable version of a model.

mmhf release outputs/quickstart --repo releases/quickstart --version 0.2
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mmhf.hub.lineage import release_run

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--repo", required=True, help="folder that holds the versions of the model")
    parser.add_argument("--version", required=True, help="the new version, such as 1.8")


def run(options: argparse.Namespace) -> None:
    released = release_run(options.run, options.repo, options.version)
    logger.info("Release: %s", released)
