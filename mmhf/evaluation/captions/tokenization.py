"""Tokens of COCO's caption metrics, without Java."""

from __future__ import annotations

import regex

_TOKEN = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}\p{N}]+|\S", regex.VERSION1)
_PUNCTUATION = frozenset({"'", "`", ".", "?", "!", ",", ":", "-", ";", "''", "``", "--", "..."})


def coco_tokens(text: str) -> list[str]:
    """Cut a caption into lower-case tokens without punctuation."""
    return [token for token in _TOKEN.findall(text.lower()) if token not in _PUNCTUATION]
