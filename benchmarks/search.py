"""Search in 1,000,000 embeddings of width 512 against bare faiss (flat) where it is installed, or numpy in memory.

Ours reads the mapped file that `mmhf search` makes beside an index. One thread, processor time, rounds alternate in
one process. The aims: one query at least 0.7 times as fast as the rival, and under 0.2 s.

    python benchmarks/search.py [ROUNDS [ROWS [approximate]]]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmhf.inference.nearest import VectorFile, find_nearest

WIDTH, TOP, BLOCK = 512, 24, 50_000


def blocks(rows):
    """Directions around 1,000 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, WIDTH), dtype=np.float32)
    for start in range(0, rows, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, rows))
        vectors = centres[rng.integers(0, 1000, len(numbers))]
        vectors = vectors + rng.standard_normal(vectors.shape, dtype=np.float32)
        yield numbers, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rival(vectors):
    try:
        import faiss
    except ImportError:
        held = np.array(vectors)
        return "numpy in memory", lambda query: np.argpartition(held @ query, -TOP)[-TOP:]
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(WIDTH)
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
    return "faiss flat", lambda query: index.search(query[None], TOP)


def main(rounds=5, rows=1_000_000, *names):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = VectorFile(Path(folder) / "image.f32", WIDTH)
        begun = time.perf_counter()
        file.write(blocks(rows))
        print(f"{rows:,} x {WIDTH}: written in {time.perf_counter() - begun:.0f} s")
        numbers, vectors = file.block()
        name, theirs = rival(vectors)
        queries = vectors[:: max(rows // 64, 1)][:64] + np.float32(0.01)
        times = {"mmhf": [], name: []}
        for round_ in range(-1, rounds):  # the first one maps the pages
            query = queries[round_ % len(queries)]
            for side, search in (
                ("mmhf", lambda asked: find_nearest([(numbers, vectors)], asked[None], TOP)), (name, theirs)
            ):  # fmt: skip
                begun = time.process_time()
                search(query)
                if round_ >= 0:
                    times[side].append(time.process_time() - begun)
        mine, other = (statistics.median(each) for each in times.values())
        print(f"a query: mmhf {mine:.3f} s, {name} {other:.3f} s: ratio {other / mine:.2f} (aim 0.7)")
        begun = time.perf_counter()
        find_nearest([(numbers, vectors)], queries, TOP)
        print(f"{len(queries)} queries at once: {(time.perf_counter() - begun) / len(queries):.4f} s a query")
        if "approximate" in names:
            begun = time.perf_counter()
            clusters = file.clusters()
            made = time.perf_counter() - begun
            begun = time.perf_counter()
            for query in queries:
                clusters.search((numbers, vectors), query, TOP)
            seconds = (time.perf_counter() - begun) / len(queries)
            print(f"approximate: {seconds:.4f} s a query, recall@10 {clusters.recall:.3f}, made in {made:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
