"""Serve the page of a model."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr
import torch

from mmhf.inference.demo.examples import write_examples
from mmhf.inference.demo.page import Page
from mmhf.inference.demo.subjects import load_subject

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MAX_UPLOAD = 20 * 2**20
"""Larger files, in bytes, are refused unless told otherwise."""


@contextlib.contextmanager
def served_demo(
    model_dir: Path,
    *,
    name: str,
    captions: Sequence[str],
    device: torch.device | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    max_upload: int = MAX_UPLOAD,
) -> Iterator[str]:
    """Serve a page for a model in threads of this process, as long as the context lasts.

    Neither the page nor the server asks anything of another machine. Uploads lie in a folder of their own, are deleted
    after an hour, and with the folder at the end.

    Args:
        model_dir (`Path`): A run or release folder of any family.
        name (`str`): What the page calls it.
        captions (`Sequence[str]`): Among which a dual encoder finds the nearest.
        device (`torch.device`, *optional*): Absent: the accelerator that is there.
        host (`str`, defaults to `"127.0.0.1"`): Address to listen on; the default reaches this machine alone.
        port (`int`, *optional*): Absent: the first free one from 7860 on.
        max_upload (`int`, defaults to 20 MiB): Bytes; a larger file is refused while it is sent.

    Yields:
        `str`: The page's address.

    Raises:
        InputError: The folder holds no model.
        OSError: The port is taken.
    """
    subject = load_subject(model_dir, captions=captions, device=device)
    if not is_loopback(host):
        logger.warning("The page is open to whoever reaches %s: it asks for no password", host)
    with tempfile.TemporaryDirectory(prefix="mmhf-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        blocks = Page(subject, name, write_examples(Path(folder), subject)).build()
        try:
            _, url, _ = blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                max_file_size=max_upload,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                # Fonts of the reader's machine: gradio's own would be asked of Google.
                theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
            )
            yield url
        finally:
            blocks.close(verbose=False)


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
