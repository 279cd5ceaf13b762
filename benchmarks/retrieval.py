"""Retrieval metrics of 31,000 images and 155,000 captions against the matrix products alone, and their memory.

The rival multiplies the same blocks and looks at nothing. Rounds alternate in one process; processor time stands
beside the clock's, for machines that others use too. The aims: the products take at least 0.8 of the metrics' time,
and the process stays under 2 GB, embeddings and torch included.

    python benchmarks/retrieval.py [ROUNDS [IMAGES]]
"""

import resource
import statistics
import sys
import time

import torch

from mmhf.evaluation.retrieval import ranks
from mmhf.evaluation.retrieval.metrics import RECALL_KS, evaluate_retrieval

WIDTH = 512
CAPTIONS = 5


def related(images):
    """Unit vectors; captions lie around their image so that recall is neither 0 nor 1."""
    torch.manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, WIDTH), dim=-1)
    index = torch.arange(images).repeat_interleave(CAPTIONS)
    text = torch.randn(images * CAPTIONS, WIDTH)
    for rows in torch.arange(len(index)).split(4096):
        text[rows] = torch.nn.functional.normalize(text[rows] + 4 * image[index[rows]], dim=-1)
    return image, text, index


def products(image, text, block_rows):
    out = torch.empty(block_rows, len(text))
    for block in image.split(block_rows):
        torch.mm(block, text.T, out=out[: len(block)])


def main(rounds=3, images=31_000):
    image, text, index = related(images)
    block_rows = ranks._RankCounter(image, text, index.numpy(), RECALL_KS).block_rows
    sides = {
        "products": lambda: products(image, text, block_rows),
        "metrics": lambda: evaluate_retrieval(image, text, index),
    }
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            clock, processor = time.perf_counter(), time.process_time()
            evaluation = side()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    recalls = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.metrics.items() if "@1" in name)
    print(f"{images:,} images, {len(text):,} captions, width {WIDTH}: {recalls}")
    for at, kind in enumerate(("clock", "processor")):
        theirs, ours = (statistics.median(pair[at] for pair in times[name]) for name in sides)
        print(f"{kind}: products {theirs:.1f} s, metrics {ours:.1f} s: ratio {theirs / ours:.2f}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
