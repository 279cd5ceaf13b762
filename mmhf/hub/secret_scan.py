"""Secrets in files that are about to be published."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmhf.errors import InputError
from mmhf.secret_kinds import OWN_TOKEN, SECRET_KINDS, find_further_secret, own_secrets

_BEFORE, _AFTER = 400, 600
_TEXT_SUFFIXES = (".json", ".yaml", ".md", ".txt", ".py", ".jinja")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_KEY = re.compile(r"^\W*([\w.-]+)[\"']?\s*[:=]")


def refuse_secrets(files: Iterable[Path]) -> None:
    """Look for passwords, tokens and keys in files of any size and kind, weights included.

    It finds passwords and tokens in URLs, the usual tokens of Hugging Face, Weights & Biases, AWS, Google, Azure,
    GitHub, GitLab, OpenAI, Anthropic, Slack and others, private keys, and whatever tokens this process has in its
    environment; in texts also what detect-secrets knows.

    Raises:
        InputError: Names the file, the line, its key and the kind of the first secret, never the secret itself.
    """
    for path in files:
        found = _first_secret(path)
        if found is not None:
            kind, line, key = found
            raise InputError(
                f"{path.name}: line {line} holds a secret ({kind}){f' under {key}' if key else ''}; take it out, and "
                "revoke it if others saw it"
            )


def _first_secret(path: Path) -> tuple[str, int, str] | None:
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for secret in own_secrets():
            if (place := content.find(secret)) >= 0:
                return OWN_TOKEN, *_line(content, place)
        for kind in SECRET_KINDS:
            for place in _occurrences(content, kind.words):
                start = max(0, place - _BEFORE)
                if found := kind.pattern.search(content[start : place + _AFTER]):
                    return kind.name, *_line(content, start + found.start())
    if path.suffix in _TEXT_SUFFIXES and path.name not in _VOCABULARIES:
        text = path.read_text(encoding="utf-8", errors="replace")
        if (further := find_further_secret(text)) is not None:
            return further[0], *_line(text.encode(), len(text[: further[1]].encode()))
    return None


def _occurrences(content: mmap.mmap, words: Iterable[bytes]) -> Iterator[int]:
    for word in words:
        place = content.find(word)
        while place >= 0:
            yield place
            place = content.find(word, place + 1)


def _line(content: mmap.mmap | bytes, place: int) -> tuple[int, str]:
    """Number of the line that a place is in, and the key that the line begins with, if it does."""
    start = content.rfind(b"\n", 0, place) + 1
    key = _KEY.match(content[start:place].decode("utf-8", errors="replace"))
    return content[:place].count(b"\n") + 1, key[1] if key else ""
