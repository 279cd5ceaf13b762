"""Names of many files in one: `data/{000..099}.tar`, `s3://bucket/train-*.tar`."""

from __future__ import annotations

from collections.abc import Sequence

from mmhf.data.remote_files import open_filesystem


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..011}` and `{a,b}` as a shell does.

    Args:
        pattern (`str`):
            Such as `data/{00..11}.tar`; leading zeros are kept, a range may count down.

    Returns:
        `list[str]`: each name once for each combination; the pattern itself when it has no braces.
    """
    start = pattern.find("{")
    end = _closing(pattern, start)
    if start < 0 or end < 0:
        return [pattern]
    head, inner, tails = pattern[:start], pattern[start + 1 : end], expand_braces(pattern[end + 1 :])
    first, dots, last = inner.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        step = 1 if int(last) >= int(first) else -1
        middles = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    else:
        parts = _split_outside(inner)
        middles = [text for part in parts for text in expand_braces(part)] if len(parts) > 1 else [f"{{{inner}}}"]
    return [head + middle + tail for middle in middles for tail in tails]


def _closing(pattern: str, start: int) -> int:
    depth = 0
    for place in range(max(start, 0), len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place if pattern[place] == "}" else -1
    return -1


def _split_outside(text: str) -> list[str]:
    """Split at commas that are in no inner braces."""
    parts, depth = [""], 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def list_files(patterns: str | Sequence[str]) -> list[str]:
    """Find the files that patterns name.

    Args:
        patterns (`str` or `Sequence[str]`):
            Paths or URLs with braces and, where they can be listed, `*`, `?` and `[...]`.

    Returns:
        `list[str]`: in the order given; those of a `*` sorted. A name without one need not exist.
    """
    files: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in expand_braces(pattern):
            if not any(character in name for character in "*?["):
                files.append(name)
                continue
            fs, path = open_filesystem(name)
            files += [fs.unstrip_protocol(found) if "://" in name else found for found in sorted(fs.glob(path))]
    return files
