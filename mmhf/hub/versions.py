"""Version numbers of releases and their order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

from mmhf.errors import InputError

_PATTERN = re.compile(r"v?(?P<numbers>\d+(?:\.\d+)*)(?P<suffix>(?:[-_.][0-9A-Za-z]+)*)")
_MIN_NUMBERS = 3
_Identifier = tuple[int, int, str]


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A version such as `v1.8`, `v1.10.2` or `v2.0-rc.1`, ordered as semantic versioning orders them.

    Numbers compare as numbers (1.10 > 1.9), absent ones count as 0 (1.8 equals 1.8.0), and a version with a suffix
    comes before the same version without one (2.0-rc.1 < 2.0).

    Args:
        numbers (`tuple[int, ...]`): The dotted numbers.
        suffix (`str`): What follows them, with its separator; may be empty.
    """

    numbers: tuple[int, ...]
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read `1.8` or `v1.8`; raises `InputError` for anything that is not a version."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise InputError(f"{text!r} is not a version: write it as 1.8, v1.8, 1.8.2 or 1.8-rc.1")
        return cls(tuple(int(number) for number in match["numbers"].split(".")), match["suffix"])

    @classmethod
    def is_valid(cls, text: str) -> bool:
        return _PATTERN.fullmatch(text) is not None

    def _key(self) -> tuple[tuple[int, ...], bool, tuple[_Identifier, ...]]:
        padded = self.numbers + (0,) * (_MIN_NUMBERS - len(self.numbers))
        identifiers = tuple(
            (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split("[-_.]", self.suffix)[1:]
        )
        return padded, not self.suffix, identifiers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key() == other._key()

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return "v" + ".".join(str(number) for number in self.numbers) + self.suffix
