"""A harmonised table of a million rows: read, filtered, and cut by patient with the label proportions kept.

Times each step and measures the peak memory of the process. The aims: under 20 s and 2 GB in all.

    python benchmarks/table_filters.py [ROWS]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from mmhf.data.loading import load_data
from mmhf.recipe.data_sources import DataSection

GIB = 2**30
LABELS = 200


def write_table(path, rows):
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            numbers = np.arange(start, start + count)
            pd.DataFrame(
                {
                    "image": [f"images/{number:08d}.jpg" for number in numbers],
                    "text": [f"A photograph of case {n} on the back." if n % 3 else "No caption" for n in numbers],
                    # Rare labels have a few rows, the most frequent ones tens of thousands.
                    "label": [f"disease {number}" for number in (LABELS * rng.random(count) ** 3).astype(int)],
                    "patient": [f"patient {number}" for number in rng.integers(0, rows // 4, count)],
                    "dataset": rng.choice(["fitzpatrick17k", "ddi", "isic2020", "ham10000", "derm1m"], count),
                    "source": rng.choice(["pubmed", "youtube", "edu"], count),
                    "age": rng.choice(["No age information", "30", "55", "80"], count),
                    "fitzpatrick": rng.integers(-1, 7, count),
                }
            ).to_csv(file, index=False, header=start == 0)


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata_all_harmonized.csv"
        write_table(path, rows)
        section = TypeAdapter(DataSection).validate_python(
            {
                "source": "table",
                "path": str(path),
                "missing": ["No * information", "No caption"],
                "columns": {"image": "image", "text": "text", "label": "label"},
                "filters": {
                    "datasets": ["fitzpatrick17k", "isic2020", "ham10000", "derm1m"],
                    "sub_sources": {"derm1m": ["pubmed", "edu"]},
                    "where": {"fitzpatrick": {"min": -1}, "age": {"exclude": ["80"]}},
                    "fraction": 0.95,
                    "min_samples_per_label": 50,
                },
                "split": {"validation": 0.1, "test": 0.1, "group_by": "patient"},
            }
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began, used = time.perf_counter(), time.process_time()
        # The images themselves are not there.
        source = load_data(section, check_images=False)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for step in source.filter_steps:
        print(f"{step.rows:>10,}  {step.filter}")
    print(", ".join(f"{split} {len(part):,}" for split, part in source.splits.items()))
    print(f"{rows:,} rows read, filtered and cut: {wall:.1f} s (CPU {cpu:.1f} s); the aim is 20 s")
    print(f"peak memory of the process: {peak / GIB:.2f} GiB (before: {before / GIB:.2f}); the aim is 2 GB")


if __name__ == "__main__":
    main()
