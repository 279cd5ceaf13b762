"""`python -m mmhf VERB …`, the same program as the console command `mmhf`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import mmhf.cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb as all that this process does.

    Args:
        arguments (`Sequence[str]`, *optional*): The verb and what follows it; absent: those of the command line.

    Returns:
        `int`: As `mmhf.cli.main`.
    """
    interrupts = _noted_interrupts()
    try:
        code = mmhf.cli.main(arguments)
        # Nothing is left to tidy up: a second Ctrl-C while libraries are unloaded ends the program without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # the second one, while the first was answered
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 130
    except Exception:
        if not interrupts:
            raise
        sys.stderr.write("interrupted\n")
        code = 130
    return code


def _noted_interrupts() -> list[int]:
    """The signals that interrupt, as they come: a compiled library may turn one into an error (pydantic's does)."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us has it ignored
        signal.signal(signal.SIGINT, interrupt)
    return interrupts


if __name__ == "__main__":
    raise SystemExit(main())
