from __future__ import annotations

import numpy as np
import pytest

from mmhf.inference import nearest
from mmhf.inference.nearest import Clusters, VectorFile, find_nearest


@pytest.fixture(params=["own", "faiss"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the library that compares."""
    found = pytest.importorskip("faiss") if request.param == "faiss" else None
    monkeypatch.setattr(nearest, "_faiss", lambda: found)


def directions(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def in_blocks(vectors: np.ndarray, size: int):
    return [
        (np.arange(start, min(start + size, len(vectors))), vectors[start : start + size])
        for start in range(0, len(vectors), size)
    ]


@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("size", [7, 1000])
def test_the_nearest_are_those_of_the_whole_product(monkeypatch, num_queries, size):
    monkeypatch.setattr(nearest, "_BLOCK_ROWS", 11)
    vectors, queries = directions(300), directions(num_queries, seed=1)
    found = find_nearest(in_blocks(vectors, size), queries, 9)
    for query, scores, rows in zip(queries, found.scores, found.rows, strict=True):
        expected = vectors @ query
        order = np.argsort(-expected, kind="stable")[:9]
        assert rows.tolist() == order.tolist()
        np.testing.assert_allclose(scores, expected[order], atol=1e-6)


def test_of_equal_ones_the_earlier_stands_first(monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK_ROWS", 8)
    vectors = np.tile(directions(3), (20, 1))
    found = find_nearest([(np.arange(60), vectors)], vectors[1:2], 30)
    assert found.rows[0][:20].tolist() == list(range(1, 60, 3))
    cut = find_nearest([(np.arange(60), vectors)], vectors[1:2], 5)
    assert cut.rows[0].tolist() == [1, 4, 7, 10, 13]


def test_fewer_than_asked_for_and_none():
    found = find_nearest([(np.array([5, 9]), directions(2))], directions(1), 10)
    assert sorted(found.rows[0].tolist()) == [5, 9]
    assert find_nearest([], directions(2), 10).rows[1].tolist() == []


def test_a_file_gives_back_what_was_written(tmp_path):
    file, vectors = VectorFile(tmp_path / "folder" / "a.f32", 16), directions(20)
    assert not file.is_whole()
    file.write([(np.arange(0, 10), vectors[:10]), (np.arange(30, 40), vectors[10:])])
    assert file.is_whole()
    numbers, kept = file.block()
    assert numbers.tolist() == [*range(10), *range(30, 40)] and np.array_equal(kept, vectors)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert not file.is_whole()


def test_nothing_can_be_written_and_read(tmp_path):
    file = VectorFile(tmp_path / "a.f32", 16)
    file.write([])
    assert file.is_whole() and len(file.block()[0]) == 0


def test_clusters_find_what_they_say(tmp_path):
    centres = directions(20, seed=3)
    vectors = np.repeat(centres, 50, axis=0) + 0.2 * directions(1000, seed=4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.arange(1000) * 2
    file = VectorFile(tmp_path / "a.f32", 16)
    file.write([(numbers, vectors)])
    made, kept = file.clusters(), file.clusters()
    assert made.recall == kept.recall >= nearest.WANTED_RECALL
    assert made.depth < len(made.centres)
    queries = vectors[::25]
    exact = find_nearest([file.block()], queries, 10).rows
    found = [kept.search(file.block(), query, 10)[1] for query in queries]
    shares = [np.isin(wanted, rows).mean() for wanted, rows in zip(exact, found, strict=True)]
    assert np.mean(shares) > 0.85


def test_one_vector_is_one_cluster():
    block = (np.array([7]), directions(1))
    assert Clusters.of(block).search(block, block[1][0], 5)[1].tolist() == [7]
    nothing = (np.empty(0, np.int64), np.empty((0, 16), np.float32))
    assert Clusters.of(nothing).search(nothing, block[1][0], 5)[1].tolist() == []
