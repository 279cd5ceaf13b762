"""Run as a program: `mmhf embed` in forked children, which are killed, or work at the same time.

Forked children need no second import, so that many moments can be tried. OMP_NUM_THREADS must be 1: a forked child
cannot use the threads that OpenMP started in its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import pyarrow.parquet as pq  # isort: skip

from mmhf.inference import table_job
from mmhf.inference.embedders import RowEmbedder, embed_table

SETTINGS = table_job.JobSettings(batch_size=2, shard_rows=2, progress=False)
EVERY = 17


def in_child(model_dir: str, table: str, output: Path, die_at: int = 0) -> bool:
    """Whether the child came to its end; with `die_at` it is killed before the n-th thing done to its files."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"step {die_at}: the child failed"
        return status == 0
    left = die_at

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event.split(".")[0] in ("open", "os", "shutil") and output.name in f"{args[:2]}":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    embed_table(model_dir, table, output, SETTINGS)
    os._exit(0)


def kill(model_dir: str, table: str, folder: Path) -> None:
    """Killed at many moments and started again, the output is as if never killed, and nothing is left beside it."""
    embed_table(model_dir, table, folder / "reference.parquet", SETTINGS)
    wanted = pq.read_table(folder / "reference.parquet")
    step, ended = 0, False
    while not ended:
        step += EVERY
        output = folder / f"killed-{step}.parquet"
        ended = in_child(model_dir, table, output, die_at=step)
        assert ended or in_child(model_dir, table, output), f"step {step}: no second start"
        assert pq.read_table(output).equals(wanted), f"step {step}: another file"
        assert not Path(f"{output}.partial").exists(), f"step {step}: not tidied up"
    sys.stdout.write(f"steps={step}\n")


def share(model_dir: str, table: str, folder: Path) -> None:
    """Three children at once write what one process would; each does a part, and no row is done twice."""
    embed_table(model_dir, table, folder / "alone.parquet", SETTINGS)
    exact, table_job._WAIT_FOR_OTHERS = RowEmbedder.make, 0.01

    def slowly(*arguments: object) -> object:
        time.sleep(0.05)
        return exact(*arguments)

    RowEmbedder.make = slowly
    output, children = folder / "shared.parquet", []
    for number in range(3):
        child = os.fork()
        if not child:
            summary = embed_table(model_dir, table, output, SETTINGS)
            (folder / f"{number}.rows").write_text(str(summary.rows_here))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert pq.read_table(output).equals(pq.read_table(folder / "alone.parquet"))
    assert not Path(f"{output}.partial").exists()
    rows = [int(path.read_text()) for path in folder.glob("*.rows")]
    sys.stdout.write(f"rows={sum(rows)} most={max(rows)}\n")


if __name__ == "__main__":
    {"kill": kill, "share": share}[sys.argv[1]](sys.argv[2], sys.argv[3], Path(sys.argv[4]))
