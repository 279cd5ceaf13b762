"""From mmhf.errors of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations



class InputError(ValueError):
    """Something the user gave cannot be used: a recipe, a file, a row, a version.

    The message is one line that says what was wrong, where, and what to do. The command line prints it without a
    traceback and exits with status 2.
    """


class UnreachableError(InputError):
    """Something the user named may well exist, but cannot be fetched now: there is no network, or no permission."""
