"""The exceptions that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a recipe, a file, a row, a version.

    The message is one line that says what was wrong, where, and what to do. The command line prints it without a
    traceback and exits with status 2.
    """


class UnreachableError(InputError):
    """Something the user named may well exist, but cannot be fetched now: there is no network, or no permission."""


class DamagedError(InputError):
    """A file is there, but is not as it was written."""


class NothingMadeError(ValueError):
    """What the user asked for was done, and nothing came of it, such as predictions of which each row failed.

    The message is one line. The command line prints it without a traceback and exits with status 1.
    """


class OtherProcessError(Exception):
    """Another process of the same run failed, so this one ends.

    The message is one line that names the process and what it said. The command line prints it without a traceback and
    exits with status 1.
    """
