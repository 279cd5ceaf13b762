"""Serve models over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import logging
from pathlib import Path

import transformers

from mmhf.hub import resolve_model
from mmhf.inference.loading import choose_device
from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.server import KEY_VARIABLE, api_key, bind, serve
from mmhf.inference.serving.shelf import Asked, Found, Shelf

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    def resolve(reference: str) -> Found:
        resolved = resolve_model(reference)
        return Found(resolved.path, resolved.revision, resolved.commit)

    transformers.logging.disable_progress_bar()
    limits = Limits(
        max_batch=options.max_batch,
        max_wait=options.max_wait / 1000,
        max_queue=options.max_queue,
        max_body=int(options.max_body * 2**20),
        max_pixels=int(options.max_pixels * 1e6),
        max_text=options.max_text,
        timeout=options.timeout,
    )
    key = api_key()
    shelf = Shelf(
        [Asked.parse(text) for text in options.model],
        resolve,
        limits,
        indexes=[Asked.parse(text, name=Path(text).stem) for text in options.index],
        device=choose_device(options.device),
    )
    with bind(options.host, options.port) as bound:
        shelf.load()
        app = create_app(shelf, key=key)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            logger.warning("Whoever reaches %s is answered: set %s to ask for a key", shown, KEY_VARIABLE)
        names = ", ".join(served.name for served in shelf)
        logger.info("%s: http://%s:%d/ (Ctrl-C ends it, SIGHUP takes new versions)", names, shown, port)
        serve(app, bound, timeout=limits.timeout)
    logger.info("Stopped; what was accepted is answered")
