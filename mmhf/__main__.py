"""`python -m mmhf VERB …`, the same program as the console command `mmhf`."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import mmhf.cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb as all that this process does.

    Args:
        arguments (`Sequence[str]`, *optional*): The verb and what follows it; absent: those of the command line.

    Returns:
        `int`: As `mmhf.cli.main`.
    """
    try:
        code = mmhf.cli.main(arguments)
        # Nothing is left to tidy up: a second Ctrl-C while libraries are unloaded ends the program without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # the second one, while the first was answered
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 130
    return code


if __name__ == "__main__":
    raise SystemExit(main())
