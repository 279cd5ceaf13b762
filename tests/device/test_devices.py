"""Forward, loss, backward, step, gradient caching, stored features and generation on a CUDA device without one."""

from __future__ import annotations

import json

import pytest

ACTS = ["train in fp32", "train in bf16", "train in fp16", "train the head", "train on pixels", "store features"]
EVERYTHING = [
    *((name, act) for name in ("fusion", "image_classifier", "dual_encoder", "captioner") for act in ACTS),
    ("dual_encoder", "cache gradients"),
    ("captioner", "generate"),
]


@pytest.fixture(scope="module")
def found(run_on_fake_cuda):
    lines = [line for line in run_on_fake_cuda.stdout.splitlines() if line.startswith("{")]
    assert run_on_fake_cuda.returncode == 0, run_on_fake_cuda.stderr[-3000:]
    said = {(entry["family"], entry["act"]): entry for entry in map(json.loads, lines)}
    assert said.keys() == set(EVERYTHING)
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("family", "act"), EVERYTHING)
def test_all_tensors_are_where_they_must_be(found, family, act):
    assert found[family, act]["error"] is None, found[family, act]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "act"), EVERYTHING)
def test_nothing_waits_for_the_device(found, family, act):
    assert found[family, act]["waits"] == []
