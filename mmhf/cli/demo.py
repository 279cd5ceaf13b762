"""Open a page to try out a model: upload an image, type a text, see the answer and what it is based on.

mmhf demo releases/fakeddit@v1.7
mmhf demo ORG/NAME@v1.7 --port 8000
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, a release, or REPO@vX.Y")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; absent: for this machine only")
    parser.add_argument("--port", type=int, help="absent: the first free one from 7860 on")
    parser.add_argument(
        "--captions",
        type=Path,
        help="dual encoders: file with the captions to choose from, one per line; absent: the sample's",
    )
    parser.add_argument("--max-upload", type=int, default=20, metavar="MB", help="refuse larger files (default: 20)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; absent: the accelerator, if there is one")
