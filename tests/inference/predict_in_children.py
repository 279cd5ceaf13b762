"""Run as a program: predict a table in forked children, which are killed with SIGKILL before the n-th thing done to
their files, for every n, or share the work.

Forked children need no second import, so that all steps can be tried. OMP_NUM_THREADS must be 1: a forked child cannot
use the threads that OpenMP started in its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)
from mmhf.inference import JobSettings, JobSummary, predict_table, table_job
from mmhf.inference.predictors import ClassificationPredictor

SHARD_ROWS = 4


def predict(model_dir: str, table: str, output: Path, shard_rows: int = SHARD_ROWS) -> JobSummary:
    settings = JobSettings(batch_size=3, shard_rows=shard_rows, progress=False)
    return predict_table(model_dir, table, output, settings)


def in_child(model_dir: str, table: str, output: Path, die_at: int = 0) -> bool:
    """Whether the child came to its end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"step {die_at}: the child failed"
        return status == 0
    left = die_at

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        reads = event == "open" and args[1] == "r" or event in ("os.listdir", "os.scandir")
        if not reads and event.split(".")[0] in ("open", "os", "shutil") and output.name in f"{args[:2]}":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    predict(model_dir, table, output)
    os._exit(0)


def kill(model_dir: str, table: str, folder: str) -> None:
    reference = Path(folder) / "reference.csv"
    predict(model_dir, table, reference)
    wanted = reference.read_bytes()

    steps = 0
    while True:
        steps += 1
        output = Path(folder) / f"killed-{steps}.csv"
        if in_child(model_dir, table, output, die_at=steps):
            break
        if not output.exists():
            assert in_child(model_dir, table, output), f"step {steps}: no second start"
            assert not Path(f"{output}.partial").exists()
        assert output.read_bytes() == wanted, f"step {steps}: another file"

    starts, output = 1, Path(folder) / "often.csv"
    while not output.exists():
        done = len(list(Path(f"{output}.partial").glob("shard-*.parquet")))
        in_child(model_dir, table, output, die_at=8 + starts)
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
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            summary = predict(model_dir, table, Path(folder) / "shared.csv", shard_rows=2)
            (Path(folder) / f"{number}.rows").write_text(str(summary.rows_here))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert not (Path(folder) / "shared.csv.partial").exists()
    rows = [int(path.read_text()) for path in Path(folder).glob("*.rows")]
    sys.stdout.write(f"rows={sum(rows)} most={max(rows)}\n")


if __name__ == "__main__":
    {"kill": kill, "share": share}[sys.argv[1]](*sys.argv[2:])
