"""Copies of frozen weights change nothing but the number of casts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tiny_families import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode

from mmhf.models.partition import Partition
from mmhf.training.frozen_copies import keep_copies, release_copies, why_no_copies
from mmhf.training.weights import apply_freezing, weights_hash


class Casts(TorchDispatchMode):
    """Counts conversions to bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        to_low = (options or {}).get("dtype") == torch.bfloat16
        self.count += function is torch.ops.aten._to_copy.default and to_low
        return function(*arguments, **(options or {}))


def step(family, model):
    """Loss and gradients of a batch in bf16, and how often something was cast."""
    model.zero_grad()
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        loss = family.loss(model.train(), family.batch(range(4)))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, casts.count


def with_head(name):
    family = FAMILIES[name]
    model = family.model()
    partition = Partition.of(model)
    head = {group for selector in family.head for group in partition.select(selector)}
    apply_freezing(model, partition, head)
    return family, model, partition, head


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_results_are_equal_to_the_bit_and_less_is_cast(name):
    family, model, _, _ = with_head(name)
    loss, gradients, num_casts = step(family, model)
    before = weights_hash(model)
    assert keep_copies(model, "bf16") > 0
    copied_loss, copied_gradients, fewer = step(family, model)
    assert torch.equal(loss, copied_loss)
    assert gradients.keys() == copied_gradients.keys()
    assert all(torch.equal(value, copied_gradients[key]) for key, value in gradients.items())
    assert fewer < 0.8 * num_casts
    assert weights_hash(model) == before
    release_copies(model)
    assert step(family, model)[2] == num_casts
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
def test_what_thaws_loses_its_copy_and_what_is_written_gets_another():
    family, model, partition, head = with_head("fusion")
    keep_copies(model, "bf16")
    other = FAMILIES["fusion"].model(seed=1)
    model.load_state_dict(other.state_dict())
    apply_freezing(other, partition, head)
    assert torch.equal(step(family, model)[0], step(family, other)[0])
    apply_freezing(model, partition, list(partition))
    assert keep_copies(model, "bf16") == 0
    apply_freezing(other, partition, list(partition))
    found, expected = step(family, model)[1], step(family, other)[1]
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_without_autocast_the_weights_themselves_are_used():
    family, model, _, _ = with_head("captioner")
    batch = family.batch(range(4))
    expected = family.loss(model, batch)
    keep_copies(model, "bf16")
    assert torch.equal(family.loss(model, batch), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(family.loss(other, batch), expected)


def test_who_keeps_copies(monkeypatch):
    cuda = torch.device("cuda")
    assert why_no_copies(cuda, "bf16") is None
    assert why_no_copies(cuda, "no") == "all is computed in fp32"
    assert why_no_copies(torch.device("cpu"), "bf16") is None
    assert why_no_copies(torch.device("mps"), "bf16") == "not on mps"
    monkeypatch.setenv("MMHF_FROZEN_COPIES", "off")
    assert why_no_copies(cuda, "bf16") == "MMHF_FROZEN_COPIES=off"


@pytest.mark.parametrize("name", ["fusion", "captioner"])
@pytest.mark.slow
def test_a_run_with_copies_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    ends = []
    for kept in (False, True):
        monkeypatch.setenv("MMHF_FROZEN_COPIES", "on" if kept else "off")
        model = FAMILIES[name].model()
        FAMILIES[name].trainer(model, tmp_path / str(kept), bf16=True, use_cpu=True).train()
        ends.append(weights_hash(model))
        assert not any("forward" in vars(module) for module in model.modules() if module is not model)
    assert ends[0] == ends[1]
