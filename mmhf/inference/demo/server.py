"""Serve the page of a model."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from mmhf.errors import InputError
from mmhf.inference.demo.page import Page
from mmhf.inference.demo.subjects import Subject
from mmhf.sample_data import read_sample

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MAX_UPLOAD = 20 * 2**20
"""Larger files, in bytes, are refused unless told otherwise."""


@contextlib.contextmanager
def served_demo(
    subject: Subject,
    *,
    name: str,
    host: str = LOOPBACK,
    port: int | None = None,
    max_upload: int = MAX_UPLOAD,
) -> Iterator[str]:
    """Serve a page for a model in threads of this process, as long as the context lasts.

    Neither the page nor its server asks anything of another machine, unless the model is there. Uploads lie in a
    folder of their own, are deleted after an hour, and with the folder at the end.

    Args:
        subject ([`Subject`]): The model.
        name (`str`): What the page calls it.
        host (`str`, defaults to `"127.0.0.1"`): Address to listen on; the default reaches this machine alone.
        port (`int`, *optional*): Absent: the first free one from 7860 on.
        max_upload (`int`, defaults to 20 MiB): Bytes; a larger file is refused while it is sent.

    Yields:
        `str`: The page's address.

    Raises:
        OSError: The port is taken.
    """
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
                theme=_theme(),
                css="#words .textspan { color: var(--body-text-color); }",
            )
            yield url
        finally:
            blocks.close(verbose=False)


def _theme() -> gr.themes.Base:
    """Gradio's, with fonts of the reader's machine (its own would be asked of Google) and buttons that can be read."""
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    buttons = {
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_hover": "*primary_800",
        "button_primary_border_color": "*primary_700",
    }
    return theme.set(**buttons, **{f"{name}_dark": value for name, value in buttons.items()})


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_NUM_EXAMPLES = 6


def write_examples(folder: Path, subject: Subject) -> list[list[str]]:
    """Write drawings of the sample's test split to a folder, each with a text that suits the model.

    Args:
        folder (`Path`): Exists.
        subject (`Subject`): Decides on the texts.

    Returns:
        `list[list[str]]`: Path of the image, then the text where the model takes one: the drawing's own name and the
        name of another by turns for a classifier, the names of the groups for a dual encoder.
    """
    drawings = read_sample("test")
    step = drawings.num_rows // _NUM_EXAMPLES
    chosen = drawings.take(list(range(step // 2, drawings.num_rows, step))[:_NUM_EXAMPLES]).to_pylist()
    groups = ", ".join(sorted(set(drawings["group"].to_pylist())))
    rows = []
    for index, drawing in enumerate(chosen):
        path = folder / f"{drawing['vendor']}-{drawing['hexcode']}.jpg"
        path.write_bytes(drawing["image"]["bytes"])
        named = drawing if index % 2 == 0 else chosen[(index + 1) % len(chosen)]
        text = groups if subject.family == "dual encoder" else named["caption"]
        rows.append([str(path), text] if subject.takes_text else [str(path)])
    return rows


def sample_captions() -> list[str]:
    """The names of the sample's test drawings."""
    captions: list[str] = read_sample("test")["caption"].to_pylist()
    return captions


def read_captions(path: Path) -> list[str]:
    """Captions of a text file, one a line; empty lines are left out.

    Raises:
        InputError: The file is missing, is no UTF-8 text, or holds no caption.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the captions as UTF-8 text") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise InputError(f"{path}: no caption in it; write one a line")
    return captions
