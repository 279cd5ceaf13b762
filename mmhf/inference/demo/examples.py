"""Examples for a page, and captions for a dual encoder to choose from, out of the embedded drawings."""

from __future__ import annotations

from pathlib import Path

from mmhf.errors import InputError
from mmhf.inference.demo.subjects import Subject
from mmhf.sample_data import read_sample

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
