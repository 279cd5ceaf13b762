"""Where messages of the verbs go while they work."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress


class ConsoleHandler(logging.Handler):
    """Writes messages to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # No bar is shown by a library that is not loaded.
        tqdm = sys.modules.get("tqdm")
        line = self.format(record)
        with suppress(OSError):  # what is told is worth less than what is done: the disk of a log may be full
            if tqdm is None:
                sys.stderr.write(f"{line}\n")
            else:
                tqdm.tqdm.write(line, file=sys.stderr)


def log_to_console() -> None:
    """Write mmhf's messages to standard error; other libraries' messages get there by their own handlers."""
    logger = logging.getLogger("mmhf")
    logger.setLevel(logging.INFO)
    logger.handlers = [ConsoleHandler()]
