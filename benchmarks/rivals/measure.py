"""Run a program and say what it took: `python measure.py COSTS.json LOG PROGRAM ARGUMENTS…`.

A process of its own, because the largest resident set of a child is at least that of the process that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def main(costs: str, log: str, *command: str) -> int:
    with Path(log).open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts in KiB, macOS in bytes.
    size = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"seconds": usage.ru_utime + usage.ru_stime, "mebibytes": size / 2**20}
    Path(costs).write_text(json.dumps(found), encoding="utf-8")
    return int(process.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
