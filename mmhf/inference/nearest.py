"""The nearest of many vectors: all compared block by block, or only those of the clusters around a query.

The vectors may be larger than memory: they lie in a file that is mapped, and one block of products is held at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from mmhf.files import whole_file

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Numbers (N,) of rows and their vectors (N, D)."""

_BLOCK_ROWS = 1 << 14
_PRODUCTS = 1 << 24
"""Products that are held at once."""
_SAMPLE_PER_CLUSTER = 64
_ROUNDS = 8
_PROBES = 200
"""Vectors that measure how many clusters have to be looked into."""
_PROBED_TOP = 10
WANTED_RECALL = 0.95


@dataclass(frozen=True)
class Nearest:
    """What was found for Q queries: the best first, of equal ones the earlier row.

    Attributes:
        scores (`list[NDArray]`): For each query the products with it.
        rows (`list[NDArray]`): For each query the numbers of the rows.
    """

    scores: list[NDArray[np.float32]]
    rows: list[NDArray[np.int64]]


def find_nearest(blocks: Iterable[Block], queries: NDArray[np.float32], top: int) -> Nearest:
    """Compare queries with every vector; by faiss where it is installed (`pip install 'mmhf[search]'`).

    Args:
        blocks (`Iterable[Block]`): The vectors, in the order of their rows.
        queries (`NDArray`): (Q, D).
        top (`int`): How many to find for each at most.
    """
    if (library := _faiss()) is not None:
        return _find_by_faiss(library, blocks, np.ascontiguousarray(queries, dtype=np.float32), top)
    asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    scores = [np.empty(0, np.float32) for _ in queries]
    found = [np.empty(0, np.int64) for _ in queries]
    step = max(min(_BLOCK_ROWS, _PRODUCTS // max(len(queries), 1)), 1)
    for numbers, vectors in blocks:
        for start in range(0, len(numbers), step):
            part = vectors[start : start + step]
            # For one query NumPy's product was measured to be the faster one.
            one = len(asked) == 1
            products = torch.from_numpy(part @ asked[0].numpy())[None] if one else asked @ torch.from_numpy(part).T
            for query, row in enumerate(products):
                _keep_best(scores, found, query, row, numbers[start : start + step], top)
    return Nearest(scores, found)


def _find_by_faiss(library: ModuleType, blocks: Iterable[Block], asked: NDArray[np.float32], top: int) -> Nearest:
    scores, found = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
    library.omp_set_num_threads(torch.get_num_threads())
    for numbers, vectors in blocks:
        for start in range(0, len(numbers), _BLOCK_ROWS):
            part = np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS])
            kept = min(top, len(part))
            # Of equal ones at the end of its list it keeps the earlier, but in another order.
            products, places = library.knn(asked, part, kept, metric=library.METRIC_INNER_PRODUCT)
            scores = np.concatenate([scores, products], axis=1)
            found = np.concatenate([found, numbers[start : start + _BLOCK_ROWS][places]], axis=1)
            best = np.lexsort((found, -scores), axis=1)[:, :top]
            scores, found = np.take_along_axis(scores, best, axis=1), np.take_along_axis(found, best, axis=1)
    return Nearest(list(scores), list(found))


@functools.cache
def _faiss() -> ModuleType | None:
    """The library, whose products of few queries are faster, where it is installed."""
    try:
        import faiss
    except ImportError:
        return None
    module: ModuleType = faiss
    return module


def _keep_best(
    scores: list[NDArray[np.float32]],
    found: list[NDArray[np.int64]],
    query: int,
    products: torch.Tensor,
    numbers: NDArray[np.int64],
    top: int,
) -> None:
    """Take the best of a block in among a query's."""
    if len(scores[query]) >= top:
        better = products > float(scores[query][-1])  # an equal one comes later, and so stands behind
    else:
        better = products >= products.topk(min(top, len(products))).values[-1]
    if not (places := better.nonzero()[:, 0].numpy()).size:
        return
    all_scores = np.concatenate([scores[query], products.numpy()[places]])
    best = np.argsort(-all_scores, kind="stable")[:top]
    scores[query], found[query] = all_scores[best], np.concatenate([found[query], numbers[places]])[best]


class VectorFile:
    """Vectors in a file of raw float32, with the numbers of their rows beside it.

    Args:
        path (`Path`): `NAME.f32`; rows are in `NAME.rows`, clusters in `NAME.clusters.npz`.
        width (`int`): Numbers of a vector.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self._rows_path = path.with_suffix(".rows")
        self._clusters_path = path.with_suffix(".clusters.npz")

    def is_whole(self) -> bool:
        """Whether it was written to its end."""
        try:
            rows = self._rows_path.stat().st_size // 8
            return self.path.stat().st_size == rows * self.width * 4
        except OSError:
            return False

    def write(self, blocks: Iterable[Block]) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: It cannot be written there.
        """
        with (
            whole_file(self._rows_path) as rows,
            whole_file(self.path) as vectors,
            rows.open("wb") as row_file,
            vectors.open("wb") as vector_file,
        ):
            for numbers, block in blocks:
                row_file.write(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
                vector_file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())

    def block(self) -> Block:
        """All of it, mapped."""
        rows = np.fromfile(self._rows_path, dtype="<i8")
        if not len(rows):
            return rows, np.empty((0, self.width), np.float32)
        # Copied when written to, so that torch takes it; nothing writes.
        return rows, np.memmap(self.path, np.float32, "c", shape=(len(rows), self.width))

    def clusters(self) -> Clusters:
        """Its clusters, made once and kept.

        Raises:
            OSError: They cannot be written beside it.
        """
        if not self._clusters_path.is_file():
            made = Clusters.of(self.block())
            with whole_file(self._clusters_path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file, centres=made.centres, order=made.order, starts=made.starts, depth=made.depth,
                    recall=made.recall,
                )  # fmt: skip
            return made
        with np.load(self._clusters_path) as kept:
            return Clusters(kept["centres"], kept["order"], kept["starts"], int(kept["depth"]), float(kept["recall"]))


@dataclass(frozen=True)
class Clusters:
    """Vectors sorted by the centre that is nearest to them, so that a query need only look into some.

    Attributes:
        centres (`NDArray`): (C, D).
        order (`NDArray`): (N,) positions of the vectors, cluster by cluster.
        starts (`NDArray`): (C + 1,) where each cluster begins in `order`.
        depth (`int`): Clusters that a query looks into.
        recall (`float`): Share of the 10 nearest of some of the vectors themselves that is found so.
    """

    centres: NDArray[np.float32]
    order: NDArray[np.int32]
    starts: NDArray[np.int64]
    depth: int
    recall: float

    @classmethod
    def of(cls, block: Block) -> Clusters:
        """Sort vectors into about √N clusters, and measure how many a query has to look into."""
        numbers, vectors = block
        if not len(vectors):
            nowhere = np.zeros((1, vectors.shape[1]), np.float32)
            return cls(nowhere, np.zeros(0, np.int32), np.zeros(2, np.int64), 1, 1.0)
        count = max(round(len(vectors) ** 0.5), 1)
        generator = np.random.default_rng(0)
        chosen = np.sort(generator.permutation(len(vectors))[: count * _SAMPLE_PER_CLUSTER])
        centres = _centres(torch.from_numpy(vectors[chosen]), count)
        owners = np.empty(len(vectors), np.int64)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            part = torch.from_numpy(vectors[start : start + _BLOCK_ROWS])
            owners[start : start + _BLOCK_ROWS] = (part @ centres.T).argmax(dim=1).numpy()
        order = np.argsort(owners, kind="stable").astype(np.int32)
        starts = np.searchsorted(owners[order], np.arange(count + 1))
        probes = np.sort(generator.permutation(len(vectors))[:_PROBES])
        exact = find_nearest([(np.arange(len(vectors)), vectors)], vectors[probes], _PROBED_TOP).rows
        depth, recall = 1, 0.0
        while True:
            made = cls(centres.numpy(), order, starts, depth, recall)
            found = [made.search(block, vectors[probe], _PROBED_TOP)[1] for probe in probes]
            hits = [np.isin(numbers[wanted], rows).mean() for wanted, rows in zip(exact, found, strict=True)]
            recall = float(np.mean(hits))
            if recall >= WANTED_RECALL or depth >= count:
                return cls(centres.numpy(), order, starts, depth, recall)
            depth = min(2 * depth, count)

    def search(
        self, block: Block, query: NDArray[np.float32], top: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of the nearest among the clusters around a query (D,)."""
        numbers, vectors = block
        near = np.argpartition(-(self.centres @ query), min(self.depth, len(self.centres)) - 1)[: self.depth]
        places = np.sort(np.concatenate([self.order[self.starts[each] : self.starts[each + 1]] for each in near]))
        found = find_nearest([(numbers[places], vectors[places])], query[None], top)
        return found.scores[0], found.rows[0]


def _centres(sample: torch.Tensor, count: int) -> torch.Tensor:
    """Spherical k-means: directions that vectors gather around."""
    centres = sample[torch.linspace(0, len(sample) - 1, count).long()].clone()
    for _ in range(_ROUNDS):
        owners = torch.cat([(part @ centres.T).argmax(dim=1) for part in sample.split(_BLOCK_ROWS)])
        sums = torch.zeros_like(centres).index_add_(0, owners, sample)
        is_used = sums.norm(dim=1) > 0
        centres[is_used] = torch.nn.functional.normalize(sums[is_used], dim=1)
    return centres
