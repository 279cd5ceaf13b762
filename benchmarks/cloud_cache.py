"""Batches of images through the warm cache of data behind URLs, against the same images as plain local files.

416 JPEG files of 500 x 375 pixels; both sides read batches of 32 rows as training does, by turns. The aim: 0.95 of the
local files' speed. Reading alone, without decoding, is shown, too.

    python benchmarks/cloud_cache.py [IMAGES, a multiple of 32]
"""

import io
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from mmhf.data.datasets import RowDataset
from mmhf.data.images import decode_image
from mmhf.data.loading import load_data
from mmhf.recipe.data_sources import DataSection

BATCH = 32
ROUNDS = 15


def write_images(folder, count):
    rng = np.random.default_rng(0)
    lines = ["image,text,label"]
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(buffer.getvalue())
        lines.append(f"{number:05d}.jpg,text,{number % 2}")
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")


def load(place, copies):
    section = TypeAdapter(DataSection).validate_python(
        {
            "source": "table",
            "path": f"{place}/table.csv",
            "split": {"validation": 0.0, "test": 0.0},
            "cloud": {"cache_dir": str(copies)},
        }
    )
    return RowDataset(load_data(section).splits["train"])


def read(image):
    content = image["bytes"]
    return Path(image["path"]).read_bytes() if content is None else content


def seconds(data, use, batches):
    begun = time.perf_counter()
    for batch in batches:
        for row in data.__getitems__(batch):
            use(row["image"])
    return time.perf_counter() - begun


def main(count=416):
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        write_images(folder, count)
        fs = fsspec.filesystem("memory")
        fs.put(str(folder), "/images", recursive=True)
        sides = {"local": load(folder, scratch), "cache": load("memory://images", Path(scratch) / "copies")}
        for use, what in ((decode_image, "read and decoded"), (read, "read alone")):
            times = {name: [] for name in sides}
            for data in sides.values():  # the first pass fills the cache
                seconds(data, use, [list(range(count))])
            for turn in range(ROUNDS):
                batches = rng.permutation(count).reshape(-1, BATCH).tolist()
                for name in list(sides)[:: 1 if turn % 2 else -1]:
                    times[name].append(seconds(sides[name], use, batches))
            local, cache = (np.median(times[name]) / count * 1e6 for name in sides)
            print(f"{what}: local {local:.0f} µs, cache {cache:.0f} µs an image: ratio {local / cache:.3f}")


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:2]))
