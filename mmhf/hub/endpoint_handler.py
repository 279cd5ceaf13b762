"""Answers requests of Hugging Face Inference Endpoints, which look for `handler.py` in a repository.

`mmhf release` copies this file there; it needs transformers, and the release's own code.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image
from transformers import pipeline

TASK = ""
"""What `pipeline()` is asked for; filled in when a release is made."""


class EndpointHandler:
    """The pipeline of a release, for requests.

    Args:
        path (`str`): The folder of the release.
    """

    def __init__(self, path: str = "") -> None:
        load: Any = pipeline
        self.pipeline: Any = load(TASK, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """What the pipeline says.

        Args:
            data (`dict`): `inputs`, and as `parameters` what else the pipeline takes, such as `candidate_labels`. An
                input is an image, or `{"image": ..., "text": ...}` where the model reads a text, too, with
                `"columns": {...}` where it reads these; or a list of them. An image is a PIL image, the bytes of a
                file, base64 or a data URL.

        Raises:
            ValueError: There is no input, or an image is something else: neither URLs nor paths are opened.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if inputs is None:
            raise ValueError("inputs: missing")
        read = [_read(each) for each in inputs] if isinstance(inputs, list) else _read(inputs)
        return self.pipeline(read, **parameters)


def _read(value: Any) -> Any:
    """An input as the pipeline takes it."""
    if not isinstance(value, dict):
        return _image(value)
    images = {name: each if each is None else _image(each) for name, each in value.items() if name == "image"}
    return images["image"] if value.keys() == {"image"} else {**value, **images}


def _image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str):
        head, comma, body = value.partition(",")
        try:
            value = base64.b64decode(body if comma and head.startswith("data:") else value, validate=True)
        except (binascii.Error, ValueError):
            value = None
    try:
        image = Image.open(io.BytesIO(value))
        image.load()
    except (OSError, TypeError) as error:
        raise ValueError("inputs: an image is base64, a data URL or the bytes of a file, and this is none") from error
    return image
