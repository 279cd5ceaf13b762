"""Run as a program: `mmhf embed` in forked children, which are killed, or work at the same time."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import pyarrow.parquet as pq  # isort: skip
from children import in_child, share_in_children

from mmhf.inference import table_job
from mmhf.inference.embedders import RowEmbedder, embed_table

SETTINGS = table_job.JobSettings(batch_size=2, shard_rows=2, progress=False)
EVERY = 17


def kill(model_dir: str, table: str, folder: Path) -> None:
    """Killed at many moments and started again, the output is as if never killed, and nothing is left beside it."""
    embed_table(model_dir, table, folder / "reference.parquet", SETTINGS)
    wanted = pq.read_table(folder / "reference.parquet")
    step, ended = 0, False
    while not ended:
        step += EVERY
        output = folder / f"killed-{step}.parquet"
        work = partial(embed_table, model_dir, table, output, SETTINGS)
        ended = in_child(work, output, die_at=step)
        assert ended or in_child(work, output), f"step {step}: no second start"
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
    output = folder / "shared.parquet"
    rows = share_in_children(lambda: embed_table(model_dir, table, output, SETTINGS).rows_here, folder)
    assert pq.read_table(output).equals(pq.read_table(folder / "alone.parquet"))
    assert not Path(f"{output}.partial").exists()
    sys.stdout.write(f"rows={sum(rows)} most={max(rows)}\n")


if __name__ == "__main__":
    {"kill": kill, "share": share}[sys.argv[1]](sys.argv[2], sys.argv[3], Path(sys.argv[4]))
