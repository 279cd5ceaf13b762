"""How fast a CSV file of 500,000 rows is read, against pandas in the same process; the aim: at least 0.7 of its speed.

python benchmarks/table_reading.py [ROWS]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mmhf.data.readers import read_batches

ROUNDS = 3


def write_table(path, rows):
    rng = np.random.default_rng(0)
    numbers = np.arange(rows)
    texts = [f'A photograph of case {n}, "seen" from the\nside.' if n % 5 == 0 else f"Case {n} again" for n in numbers]
    labels = [f"disease {number}" for number in rng.integers(0, 200, rows)]
    frame = {"image": [f"images/{n:08d}.jpg" for n in numbers], "text": texts, "label": labels, "age": numbers % 90}
    pd.DataFrame(frame).to_csv(path, index=False)


def best_of(read):
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        count = read()
        seconds.append(time.process_time() - began)
    return min(seconds), count


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path, rows)
        theirs, expected = best_of(lambda: len(pd.read_csv(path, dtype=str, keep_default_na=False)))
        ours, count = best_of(lambda: sum(len(batch) for batch in read_batches(path)))
    assert count == expected == rows
    print(f"{rows:,} rows: mmhf {ours:.2f} s, pandas {theirs:.2f} s of CPU; {theirs / ours:.2f} of pandas' speed")


if __name__ == "__main__":
    main()
