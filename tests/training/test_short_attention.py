"""Attention over few tokens as products of matrices: torch's own results, and only where they are slow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import FAMILIES
from torch.nn.functional import scaled_dot_product_attention

from mmhf.training import short_attention as module
from mmhf.training.short_attention import attend, short_attention

CPU = torch.device("cpu")


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    repeats=st.integers(1, 3),
    mask=st.sampled_from(["none", "bool", "float", "causal"]),
    scale=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
def test_products_equal_torch(queries, keys, repeats, mask, scale, seed):
    torch.manual_seed(seed)
    query = torch.randn(2, 2 * repeats, queries, 4, requires_grad=True)
    key, value = (torch.randn(2, 2, keys, 4, requires_grad=True) for _ in range(2))
    seen = torch.rand(2, 1, queries, keys) < 0.6
    seen[..., 0] = True
    masks = {"bool": seen, "float": torch.zeros(2, 1, queries, keys).masked_fill(~seen, -1e4)}
    options = {"attn_mask": masks.get(mask), "is_causal": mask == "causal", "scale": scale, "enable_gqa": True}
    expected = scaled_dot_product_attention(query, key, value, **options)
    found = attend(query, key, value, **options)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    inputs = (query, key, value)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_dropout_drops_weights_of_attention():
    torch.manual_seed(0)
    value = torch.ones(1, 1, 100, 4)
    attended = attend(torch.zeros(1, 1, 100, 4), torch.zeros(1, 1, 100, 4), value, dropout_p=0.5)
    assert attended.std() > 0
    assert attended.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("tokens", "dtype", "precision", "is_fused"),
    [
        (128, torch.bfloat16, "bf16", False),
        (129, torch.bfloat16, "bf16", True),
        (128, torch.float32, "bf16", True),
        (128, torch.bfloat16, "no", True),
    ],
)
def test_products_are_for_short_sequences_in_bf16_on_a_cpu(tokens, dtype, precision, is_fused):
    inputs = [torch.randn(1, 1, tokens, 4, dtype=dtype, requires_grad=True) for _ in range(3)]
    with short_attention(CPU, precision):
        made_by = scaled_dot_product_attention(*inputs).grad_fn
    assert ("ScaledDotProduct" in type(made_by).__name__) == is_fused


def test_autocast_makes_bf16_of_what_is_attended():
    inputs = [torch.randn(1, 1, 4, 4, requires_grad=True) for _ in range(3)]
    with short_attention(CPU, "bf16"), torch.autocast("cpu", torch.bfloat16):
        attended = scaled_dot_product_attention(*inputs)
    assert attended.dtype == torch.bfloat16
    assert "ScaledDotProduct" not in type(attended.grad_fn).__name__
    torch.testing.assert_close(attended.float(), scaled_dot_product_attention(*inputs), atol=0.02, rtol=0.02)


def test_other_devices_keep_their_kernels():
    with short_attention(torch.device("cuda"), "bf16"):
        made_by = scaled_dot_product_attention(*[torch.randn(1, 1, 2, 4).bfloat16().requires_grad_()] * 3).grad_fn
    assert "ScaledDotProduct" in type(made_by).__name__


@pytest.mark.parametrize(("options", "is_used"), [({"bf16": True}, True), ({}, False)])
def test_training_in_bf16_attends_by_products(options, is_used, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "attend", lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs))
    family = FAMILIES["captioner"]
    family.trainer(family.model(), tmp_path, use_cpu=True, **options).train()
    assert bool(calls) == is_used
