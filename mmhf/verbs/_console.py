"""Where messages of the verbs go while they work."""

from __future__ import annotations

import logging
import sys


class ConsoleHandler(logging.Handler):
    """Writes messages to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # No bar is shown by a library that is not loaded.
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            sys.stderr.write(f"{self.format(record)}\n")
        else:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
