"""Secrets in files that are about to be published, and in messages that are about to be printed."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmhf.errors import InputError

_ENVIRONMENT = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
_MIN_SECRET = 12
_BEFORE, _AFTER = 64, 400


@dataclass(frozen=True)
class _Kind:
    """A kind of secret: words to look for, which is fast in gigabytes of weights, and what must stand around them."""

    name: str
    words: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


_KINDS = (
    _Kind(
        "Hugging Face token",
        (b"hf_", b"api_org_"),
        re.compile(rb"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,}(?![A-Za-z0-9])"),
    ),
    _Kind(
        "Weights & Biases key",
        (b"wandb", b"WANDB"),
        re.compile(
            rb"(?i)wandb_v1_\w{20,}|wandb[^\n]{0,40}?(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
            rb"|api\.wandb\.ai\s[^\x00]{0,60}?password\s+[0-9a-f]{40}"
        ),
    ),
    _Kind("AWS key", (b"AKIA", b"ASIA"), re.compile(rb"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    _Kind(
        "AWS secret key",
        (b"aws_secret", b"AWS_SECRET", b"SecretAccessKey"),
        re.compile(
            rb"(?i)(?:aws_secret_access_key|SecretAccessKey)[\"'\\\s:=]{1,8}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
        ),
    ),
    _Kind("Google API key", (b"AIza",), re.compile(rb"(?<![\w-])AIza[\w-]{35}(?![\w-])")),
    _Kind("Google access token", (b"ya29.",), re.compile(rb"(?<![\w-])ya29\.[\w-]{20,}")),
    _Kind("private key", (b"PRIVATE KEY",), re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")),
)


def refuse_secrets(files: Iterable[Path]) -> None:
    """Look for tokens and keys in files of any size and kind, weights included.

    It finds the usual tokens of Hugging Face, Weights & Biases, AWS and Google, private keys, and whatever tokens
    this process has in its environment.

    Raises:
        InputError: Names the file, the line and the kind of the first secret, never the secret itself.
    """
    for path in files:
        found = _first_secret(path)
        if found is not None:
            kind, line = found
            raise InputError(
                f"{path.name}: line {line} holds a secret ({kind}); take it out, and revoke it if others saw it"
            )


def redact(text: str) -> str:
    """A message without the tokens and keys that it may hold, such as a server's that repeats what it was sent."""
    content = text.encode("utf-8", errors="surrogateescape")
    for secret in _own_secrets():
        content = content.replace(secret, b"***")
    for kind in _KINDS:
        content = kind.pattern.sub(b"***", content)
    return content.decode("utf-8", errors="surrogateescape")


def _first_secret(path: Path) -> tuple[str, int] | None:
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for secret in _own_secrets():
            place = content.find(secret)
            if place >= 0:
                return "token of this environment", _line(content, place)
        for kind in _KINDS:
            for place in _occurrences(content, kind.words):
                if kind.pattern.search(content[max(0, place - _BEFORE) : place + _AFTER]):
                    return kind.name, _line(content, place)
    return None


def _occurrences(content: mmap.mmap, words: Iterable[bytes]) -> Iterator[int]:
    for word in words:
        place = content.find(word)
        while place >= 0:
            yield place
            place = content.find(word, place + 1)


def _line(content: mmap.mmap, place: int) -> int:
    return content[:place].count(b"\n") + 1


def _own_secrets() -> list[bytes]:
    values = (os.environ.get(name, "").strip() for name in _ENVIRONMENT)
    return [value.encode() for value in values if len(value) >= _MIN_SECRET]
