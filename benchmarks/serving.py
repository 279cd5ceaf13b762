"""Serving against a bare loop of the model on the same decoded images and against `pipeline()`; how long clients wait.

The server and its clients are one process: requests pass the application, its limits, the decoding and the batcher,
and no network. The bare loop takes tensors that are decoded and resized already. Rounds alternate. The aims: at least
0.9 of the bare model's images a second, one request in at most 1.2 of the time of a `pipeline()`'s call, and a p99 of
at most three full batches, of which 64 clients fill two.

    python benchmarks/serving.py [ROUNDS]
"""

import asyncio
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import httpx  # isort: skip
import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, pipeline

from mmhf.inference.inputs import Example
from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.services import PredictOptions
from mmhf.inference.serving.shelf import Asked, Found, Shelf
from mmhf.models.encoders import timm_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

SIDE, BATCH, CLIENTS, REQUESTS = 224, 32, 64, 2


def save_model(folder, architecture="tf_efficientnet_lite0", side=SIDE):
    """A classifier of timm's with random weights."""
    torch.manual_seed(0)
    half = [0.5, 0.5, 0.5]
    vision = timm_config(architecture, {"input_size": [3, side, side], "mean": half, "std": half})
    config = BackboneForImageClassificationConfig(vision, id2label={0: "a", 1: "b"})
    BackboneForImageClassification(config).save_pretrained(folder)
    square = {"height": side, "width": side}
    CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False).save_pretrained(folder)


@torch.inference_mode()
def bare(model, batches):
    begun = time.perf_counter()
    for pixels in batches:
        model(pixel_values=pixels)
    return time.perf_counter() - begun


async def full_batches(client, files, count):
    """Seconds of requests of a full batch, two under way at a time."""
    begun = time.perf_counter()
    room = asyncio.Semaphore(2)

    async def ask():
        async with room:
            (await client.post("/v1/predict", files=files)).raise_for_status()

    await asyncio.gather(*(ask() for _ in range(count)))
    return time.perf_counter() - begun


async def one_by_one(client, file, classify, path, count=10):
    """Seconds of requests at rest, and of calls of the pipeline on the same file; in turns."""
    served, piped = [], []
    for _ in range(count):
        begun = time.perf_counter()
        (await client.post("/v1/predict", files=[file])).raise_for_status()
        served.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        classify(Image.open(io.BytesIO(path.read_bytes())))
        piped.append(time.perf_counter() - begun)
    return served, piped


async def single_clients(client, file):
    """Seconds of each request of 64 clients that send one image after the other."""
    seconds = []

    async def ask():
        for _ in range(REQUESTS):
            begun = time.perf_counter()
            (await client.post("/v1/predict", files=[file])).raise_for_status()
            seconds.append(time.perf_counter() - begun)

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return seconds


async def measure(folder, rounds):
    limits = Limits(max_batch=BATCH, timeout=600)
    shelf = Shelf([Asked("m", str(folder))], lambda path: Found(Path(path), None, ""), limits)
    shelf.load()
    service = next(iter(shelf)).service
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    path = folder / "picture.jpg"
    Image.fromarray(picture).save(path)
    file = ("image", path.read_bytes())
    example = Example(torch.from_numpy(picture).permute(2, 0, 1))
    batch = service.predictor(PredictOptions()).collator([example] * BATCH)
    tensors = [batch.encodings["row"]["pixel_values"]] * 3
    bare(service.model, tensors)
    transport = httpx.ASGITransport(create_app(shelf))
    served, loop, waited, alone, piped = [], [], [], [], []
    classify = pipeline("image-classification", model=str(folder))
    classify(Image.open(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://served", timeout=600) as client:
        await full_batches(client, [file] * BATCH, 1)
        for _ in range(rounds):
            served.append(await full_batches(client, [file] * BATCH, len(tensors)))
            loop.append(bare(service.model, tensors))
            mine, theirs = await one_by_one(client, file, classify, path)
            alone, piped = alone + mine, piped + theirs
            waited += await single_clients(client, file)
    await shelf.close()
    images = len(tensors) * BATCH
    one_batch = statistics.median(loop) / len(tensors)
    p99 = float(np.quantile(waited, 0.99))
    mine, theirs = images / statistics.median(served), images / statistics.median(loop)
    print(f"served {mine:.1f} images/s, bare model {theirs:.1f} images/s: ratio {mine / theirs:.3f}")
    mine, theirs = statistics.median(alone), statistics.median(piped)
    print(f"one request {mine * 1000:.1f} ms, pipeline() {theirs * 1000:.1f} ms: {mine / theirs:.3f} of it")
    print(
        f"{CLIENTS} clients: p99 {p99:.3f} s, a full batch of {BATCH} {one_batch:.3f} s: {p99 / one_batch:.2f} times"
    )


def main(rounds=3):
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        asyncio.run(measure(Path(folder), rounds))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
