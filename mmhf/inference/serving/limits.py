"""What a request may cost, and how one is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from starlette.requests import Request

from mmhf.data.columns import encodable
from mmhf.data.images import BadImageError, find_size
from mmhf.data.pixels import decode_pixels
from mmhf.errors import InputError

RETRY = {"Retry-After": "1"}


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status (`int`): Of HTTP.
        message (`str`): One sentence, for whoever asked.
        headers (`Mapping[str, str]`, *optional*): Of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Limits:
    """What requests may cost.

    Args:
        max_batch (`int`, defaults to 32): Inputs that run together at most.
        max_wait (`float`, defaults to 0.005): Seconds that an input waits for others.
        max_queue (`int`, defaults to 256): Requests that are under way, and inputs that wait for a model.
        max_body (`int`, defaults to 20 MiB): Bytes of a request's body.
        max_pixels (`int`, defaults to 25 million): Pixels of an image.
        max_text (`int`, defaults to 10,000): Characters of a text.
        timeout (`float`, defaults to 30): Seconds that a body may take to arrive, and an answer to be made.

    Raises:
        InputError: One of them is not above 0, or a queue shorter than a batch.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    max_queue: int = 256
    max_body: int = 20 << 20
    max_pixels: int = 25_000_000
    max_text: int = 10_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "max_wait"):
                raise InputError(f"{name.replace('_', '-')}: expected a number above 0")
        if self.max_queue < self.max_batch:
            raise InputError(f"max-queue {self.max_queue}: is shorter than a batch of {self.max_batch}")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request, refused as soon as it is too long or takes too long.

    Raises:
        RefusedError: It is longer than allowed, or does not arrive in time.
        ClientDisconnect: The client has gone.
    """
    too_long = RefusedError(413, f"The body is longer than the {limits.max_body:,} bytes that are allowed.")
    length = request.headers.get("content-length", "")
    if re.fullmatch(r"\d+", length) and int(length) > limits.max_body:
        raise too_long

    async def collect() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.max_body:
                raise too_long
        return bytes(body)

    try:
        return await asyncio.wait_for(collect(), limits.timeout)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"The body did not arrive within {limits.timeout:g} seconds.") from None


def read_picture(content: bytes, where: str, limits: Limits) -> torch.Tensor:
    """Decode an image as uint8 (3, H, W). Its size is looked at first.

    Raises:
        RefusedError: It cannot be read, or has too many pixels.
    """
    try:
        width, height = find_size(content)
        if width * height > limits.max_pixels:
            raise RefusedError(
                413, f"{where}: {width} x {height} pixels, more than the {limits.max_pixels:,} that are allowed."
            )
        return decode_pixels(content)
    except BadImageError as error:
        raise RefusedError(422, f"{where}: {error}.") from error


def read_text(text: str, where: str, limits: Limits) -> str:
    """A text as `mmhf predict` reads it from a table: without blanks around it.

    Raises:
        RefusedError: It is too long.
    """
    if len(text) > limits.max_text:
        raise RefusedError(413, f"{where}: {len(text):,} characters, more than the {limits.max_text:,} allowed.")
    return encodable(text.strip()) or ""
