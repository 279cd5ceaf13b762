"""Open a page to try out a model: upload an image, type a text, see the answer and what it is based on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading

import transformers

from mmhf.errors import InputError
from mmhf.hub import resolve_model
from mmhf.inference.demo.served import ServedSubject
from mmhf.inference.demo.server import read_captions, sample_captions, served_demo
from mmhf.inference.demo.subjects import Subject, load_subject
from mmhf.inference.loading import choose_device, public_name
from mmhf.inference.serving.server import api_key

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    if options.max_upload < 1:
        raise InputError(f"--max-upload {options.max_upload}: expected 1 (megabyte) or more")
    captions = sample_captions() if options.captions is None else read_captions(options.captions)
    if options.server is not None:
        served = ServedSubject(options.server, options.model, captions=captions, key=api_key())
        subject: Subject = served
        name = served.name
    elif options.model is not None:
        transformers.logging.disable_progress_bar()
        device = choose_device(options.device)
        subject = load_subject(resolve_model(options.model).path, captions=captions, device=device)
        name = public_name(options.model)
    else:
        raise InputError("mmhf demo: name a model, or a server with --server; mmhf demo --help tells more")
    serving = served_demo(
        subject, name=name, host=options.host, port=options.port, max_upload=options.max_upload * 2**20
    )
    with contextlib.suppress(KeyboardInterrupt), serving as url:
        logger.info("%s: %s (Ctrl-C ends it)", options.server or options.model, url)
        threading.Event().wait()
