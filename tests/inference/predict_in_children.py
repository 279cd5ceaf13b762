"""Run as a program: predict a table in forked children, which are killed with SIGKILL before the n-th thing done to
their files, for every third n (the campaigns try the others, too), or share the work."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

from children import in_child, share_in_children  # isort: skip
from mmhf.inference import JobSettings, JobSummary, predict_table, table_job
from mmhf.inference.label_predictors import ClassificationPredictor

SHARD_ROWS = 7


def predict(model_dir: str, table: str, output: Path, shard_rows: int = SHARD_ROWS) -> JobSummary:
    settings = JobSettings(batch_size=3, shard_rows=shard_rows, progress=False)
    return predict_table(model_dir, table, output, settings)


def kill(model_dir: str, table: str, folder: str) -> None:
    reference = Path(folder) / "reference.csv"
    predict(model_dir, table, reference)
    wanted = reference.read_bytes()

    steps = -1
    while True:
        steps += 3
        output = Path(folder) / f"killed-{steps}.csv"
        work = partial(predict, model_dir, table, output)
        if in_child(work, output, die_at=steps, counts_reads=False):
            break
        if not output.exists():
            assert in_child(work, output, counts_reads=False), f"step {steps}: no second start"
            assert not Path(f"{output}.partial").exists()
        assert output.read_bytes() == wanted, f"step {steps}: another file"

    starts, output = 1, Path(folder) / "often.csv"
    while not output.exists():
        done = len(list(Path(f"{output}.partial").glob("shard-*.parquet")))
        work = partial(predict, model_dir, table, output)
        in_child(work, output, die_at=8 + starts, counts_reads=False)
        assert output.exists() or len(list(Path(f"{output}.partial").glob("shard-*.parquet"))) >= done
        starts += 1
    assert output.read_bytes() == wanted
    sys.stdout.write(f"steps={steps} starts={starts}\n")


def share(model_dir: str, table: str, folder: str) -> None:
    """Three children at once; each does a part, and no row is done twice."""
    exact, table_job._WAIT_FOR_OTHERS = ClassificationPredictor.predict, 0.01

    def slowly(self: ClassificationPredictor, encoding: dict) -> object:
        time.sleep(0.1)
        return exact(self, encoding)

    ClassificationPredictor.predict = slowly
    output = Path(folder) / "shared.csv"
    rows = share_in_children(lambda: predict(model_dir, table, output, shard_rows=2).rows_here, Path(folder))
    assert not (Path(folder) / "shared.csv.partial").exists()
    sys.stdout.write(f"rows={sum(rows)} most={max(rows)}\n")


if __name__ == "__main__":
    {"kill": kill, "share": share}[sys.argv[1]](*sys.argv[2:])
