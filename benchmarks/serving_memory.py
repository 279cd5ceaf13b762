"""How much memory a server has taken on over many requests, answered and refused ones.

The server and its clients are one process, with a tiny image classifier. The first tenth of the requests
is not counted: pools of threads and of memory fill then. The aim: flat, over 50,000 requests.

    python benchmarks/serving_memory.py [REQUESTS]
"""

import asyncio
import gc
import io
import logging
import sys
import tempfile
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import httpx  # isort: skip
import numpy as np
import psutil
from PIL import Image
from serving import save_model

from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.shelf import Asked, Found, Shelf

CLIENTS = 16


def pictures(count):
    """Files of different sizes."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        height, width = draw.integers(16, 200, 2)
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "JPEG")
        yield file.getvalue()


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


async def measure(folder, requests):
    shelf = Shelf([Asked("m", str(folder))], lambda path: Found(Path(path), None, ""), Limits())
    shelf.load()
    files = [*pictures(50), b"no image"]
    readings, statuses, done = [], {}, 0

    async def ask():
        nonlocal done
        while done < requests:
            number, done = done, done + 1
            answer = await client.post("/v1/predict", files=[("image", files[number % len(files)])])
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if number % (requests // 10) == 0:
                readings.append(resident())

    transport = httpx.ASGITransport(create_app(shelf))
    begun = time.perf_counter()
    async with httpx.AsyncClient(transport=transport, base_url="http://served", timeout=600) as client:
        await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    readings.append(resident())
    await shelf.close()
    took = time.perf_counter() - begun
    print(
        f"{requests:,} requests in {took:.0f} s, by status {statuses}; MB: {', '.join(f'{r:.0f}' for r in readings)}"
    )
    print(f"memory after the first tenth of {requests:,} requests: {readings[-1] - readings[1]:.1f} MB more")


def main(requests=50_000):
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), "test_efficientnet", side=32)
        asyncio.run(measure(Path(folder), requests))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
