"""The one exception that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a recipe, a file, a row, a version.

    The message is one line that says what was wrong, where, and what to do. The command line prints it without a
    traceback and exits with status 2.
    """
