"""Open a page to try out a model: upload an image, type a text, see the answer and what it is based on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading

import transformers

from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference.demo.server import read_captions, sample_captions, served_demo
from mmhf.inference.loading import choose_device, public_name

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    if options.max_upload < 1:
        raise InputError(f"--max-upload {options.max_upload}: expected 1 (megabyte) or more")
    captions = sample_captions() if options.captions is None else read_captions(options.captions)
    transformers.logging.disable_progress_bar()
    serving = served_demo(
        resolve_model(options.model).path,
        name=public_name(options.model),
        captions=captions,
        device=choose_device(options.device),
        host=options.host,
        port=options.port,
        max_upload=options.max_upload * 2**20,
    )
    with contextlib.suppress(KeyboardInterrupt), serving as url:
        logger.info("%s: %s (Ctrl-C ends it)", options.model, url)
        threading.Event().wait()
