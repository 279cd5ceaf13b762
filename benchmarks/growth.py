"""What a row costs at the start of a run: loading, checking and comparing a folder of images, first and again.

Writes folders of small JPEGs, loads each twice as training does, every load in a process of its own, and prints the
time of a row, the growth of memory, and how much longer many rows take than few. The aims: times that grow as the rows
do, and a second start on 50,000 images under 2 s on an idle machine.

    python benchmarks/growth.py [SMALLEST [LARGEST]]
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LOAD = """
import resource, sys, time
from mmhf.data import seen_files
from mmhf.data.loading import load_data
from mmhf.recipe.data_sources import DataSection
from pydantic import TypeAdapter
seen_files._SETTLED_AFTER = -1e9  # the files were written just now
section = TypeAdapter(DataSection).validate_python({"source": "image_folder", "path": sys.argv[1]})
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
data = load_data(section, task="image-classification")
seconds = time.perf_counter() - begun
print(seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), data.num_rows("train"))
"""


def write(folder, count):
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 48))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        (place / f"{number}.jpg").write_bytes(buffer.getvalue())


def load(folder, cache):
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], check=True, capture_output=True, text=True, env=environment
    )
    seconds, grown, rows = done.stdout.split()[-3:]
    return float(seconds), float(grown), int(rows)


def main(smallest=1000, largest=50_000):
    measured = []
    for count in (smallest, largest):
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.perf_counter()
            write(Path(scratch) / "images", count)
            print(f"{count:,} images written in {time.perf_counter() - begun:.0f} s", flush=True)
            first = load(Path(scratch) / "images", Path(scratch) / "cache")
            again = load(Path(scratch) / "images", Path(scratch) / "cache")
            for name, (seconds, _, rows) in (("first", first), ("second", again)):
                print(f"{name} start on {count:,}: {seconds:.2f} s, {1e6 * seconds / rows:.0f} us a row", flush=True)
            measured.append((count, first, again))
    (few, small, _), (many, large, _) = measured
    rows = many - few
    print(f"first start: {(large[1] - small[1]) / rows / 1024:.2f} KB a row more, working memory of threads included")
    print(f"first start: {many / few:.0f} times the rows take {large[0] / small[0]:.1f} times as long")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
