from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from mmhf.conventions import IGNORED_IMAGE
from mmhf.models.contrastive_loss import EmbeddedPairs, caption_ids, contrastive_loss
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.encoders import timm_config
from mmhf.training.gradient_caching import RandomState, contrast_outputs, embed_without_graph

Batch = dict[str, Tensor]
BatchOf = Callable[..., Batch]


def whole_gradients(model: DualEncoderModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**batch)
    pairs = EmbeddedPairs(
        output.image_embeds,
        output.text_embeds,
        batch["image_index"],
        caption_ids(batch["input_ids"], batch["attention_mask"]),
    )
    loss = contrastive_loss(pairs, output.logit_scale, output.logit_bias, model.contrast)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def cached_gradients(model: DualEncoderModel, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    outputs, states = zip(*(embed_without_graph(model, batch) for batch in batches), strict=True)
    step = contrast_outputs(outputs, batches, model.contrast)
    for number, batch in enumerate(batches):
        with states[number].replayed():
            step.surrogate(model(**batch), number).backward()
    return step.loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(one: tuple, other: tuple) -> None:
    torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=1e-6)
    for name, gradient in one[1].items():
        torch.testing.assert_close(
            gradient, other[1][name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


IMAGES = [0, 0, 2, 3, 4, 5, 5, 5, 8, 9, IGNORED_IMAGE, 11]


@pytest.mark.parametrize(
    "values",
    [{}, {"loss": "sigmoid", "logit_bias": -3.0}, {"same_image": "positive"}, {"matryoshka": [3, 8]}],
)
@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 7], [11, 1]])
@pytest.mark.slow
def test_micro_batches_give_the_gradients_of_one_batch(
    tiny_model: Callable[..., DualEncoderModel], batch_of: BatchOf, values: dict, sizes: list[int]
) -> None:
    model = tiny_model(label_smoothing=0.1, **values).train()
    batch = batch_of(range(12), IMAGES)
    batch["input_ids"][9] = batch["input_ids"][8]
    parts = {name: tensor.split(sizes) for name, tensor in batch.items()}
    batches = [{name: parts[name][number] for name in parts} for number in range(len(sizes))]
    assert_equal(cached_gradients(model, batches), whole_gradients(model, batch))


def test_the_second_pass_replays_the_dropout_of_the_first(
    tiny_model: Callable[..., DualEncoderModel], batch_of: BatchOf
) -> None:
    model = tiny_model(dropout=0.3).train()
    batches = [batch_of(range(start, start + 4)) for start in (0, 4, 8)]
    torch.manual_seed(3)
    outputs, states = zip(*(embed_without_graph(model, batch) for batch in batches), strict=True)
    after = torch.get_rng_state()
    again = []
    for state, batch in zip(states, batches, strict=True):
        with state.replayed():
            again.append(model(**batch))
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(outputs, again, strict=True):
        assert torch.equal(one.image_embeds, other.image_embeds)
        assert torch.equal(one.text_embeds, other.text_embeds)
    assert not torch.equal(model(**batches[0]).image_embeds, outputs[0].image_embeds)

    # The same masks without caching: the graph of all micro-batches kept.
    step = contrast_outputs(outputs, batches, model.contrast)
    for number, output in enumerate(again):
        step.surrogate(output, number).backward()
    cached = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    kept = [model(**batch) for batch in batches]
    pairs = EmbeddedPairs(
        torch.cat([output.image_embeds for output in kept]),
        torch.cat([output.text_embeds for output in kept]),
        torch.arange(12),
        torch.cat([caption_ids(batch["input_ids"]) for batch in batches]),
    )
    loss = contrastive_loss(pairs, kept[0].logit_scale, None, model.contrast)
    loss.backward()
    assert_equal((step.loss, cached), (loss.detach(), {name: p.grad for name, p in model.named_parameters()}))


def test_bf16_autocast_embeds_equally_in_both_passes(
    tiny_model: Callable[..., DualEncoderModel], batch_of: BatchOf
) -> None:
    model = tiny_model(dropout=0.2).train()
    batches = [batch_of(range(4)), batch_of(range(4, 8))]
    with torch.autocast("cpu", torch.bfloat16):
        outputs, states = zip(*(embed_without_graph(model, batch) for batch in batches), strict=True)
        with states[1].replayed():
            again = model(**batches[1])
    assert torch.equal(outputs[1].image_embeds.float(), again.image_embeds.float())
    step = contrast_outputs(outputs, batches, model.contrast)
    assert step.loss.dtype == torch.float32


def test_frozen_towers_take_no_part_in_the_backward_pass(
    tiny_model: Callable[..., DualEncoderModel], batch_of: BatchOf
) -> None:
    model = tiny_model()
    batches = [batch_of(range(4)), batch_of(range(4, 8))]
    _, expected = cached_gradients(model, batches)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("text"))
    _, gradients = cached_gradients(model, batches)
    assert all((gradient is None) == (not name.startswith("text")) for name, gradient in gradients.items())
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name])


def test_batch_norm_counts_each_batch_once(batch_of: BatchOf) -> None:
    half = [0.5, 0.5, 0.5]
    vision = timm_config(
        "test_efficientnet", {"input_size": [3, 16, 16], "mean": half, "std": half, "interpolation": "bicubic"}
    )
    text = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = DualEncoderConfig(vision, text, vision_pooling="avg", text_pooling="mean", embedding_dim=8)
    torch.manual_seed(0)
    model = DualEncoderModel(config).train()
    plain = copy.deepcopy(model)
    batches = [batch_of(range(4)), batch_of(range(4, 8))]
    cached_gradients(model, batches)
    with torch.no_grad():
        for batch in batches:
            plain(**batch)
    buffers = dict(plain.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in buffers)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name])


def test_a_state_covers_the_device_of_its_batch(batch_of: BatchOf) -> None:
    state = RandomState.now(batch_of(range(2)))
    assert (state.devices, state.device_type) == ([], "cpu")
    drawn = torch.rand(3)
    with state.replayed():
        assert torch.equal(torch.rand(3), drawn)
