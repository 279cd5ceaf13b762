from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import build_captioner_model
from mmhf.models.partition import Partition
from mmhf.recipe.captioner_recipe import CaptionerModelSection
from mmhf.training.weights import apply_freezing

Model = PrefixCaptionerForConditionalGeneration
Batch = dict[str, Tensor]


def _seed_loss(model: Model, batch: Batch) -> Tensor:
    """The seed's way: the language model's own loss over prefix and padded captions together."""
    prefix = model.prefix_embeds(model.image_features(batch["pixel_values"]))
    embeds = torch.cat([prefix, model.language.get_input_embeddings()(batch["input_ids"])], dim=1)
    labels = functional.pad(batch["labels"], (prefix.shape[1], 0), value=-100)
    mask = functional.pad(batch["attention_mask"], (prefix.shape[1], 0), value=1)
    return model.language(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss


def test_loss_equals_that_of_the_language_model_over_the_whole_padded_sequence(model: Model, batch: Batch) -> None:
    ours, theirs = model(**batch).loss, _seed_loss(model, batch)
    torch.testing.assert_close(ours, theirs)
    names = (
        "projector.layers.0.weight",
        "language.model.layers.0.mlp.up_proj.weight",
        "vision.visual_projection.weight",
    )
    parameters = [model.get_parameter(name) for name in names]
    mine, reference = (torch.autograd.grad(loss, parameters) for loss in (ours, theirs))
    for gradient, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_a_caption_costs_the_same_beside_a_longer_one(model: Model, batch: Batch) -> None:
    counts = (batch["labels"] != -100).sum(dim=1)
    alone = []
    for row, count in enumerate(counts):
        cut = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        cut = {name: tensor if name == "pixel_values" else tensor[:, :count] for name, tensor in cut.items()}
        alone.append(model(**cut).loss * count)
    torch.testing.assert_close(model(**batch).loss, torch.stack(alone).sum() / counts.sum())


def test_end_of_text_is_learnt_and_what_follows_is_not(model: Model, batch: Batch) -> None:
    without_end = batch["labels"].clone()
    last = (batch["labels"] != -100).sum(dim=1) - 1
    assert (batch["labels"].gather(1, last[:, None]) == 0).all()
    without_end[torch.arange(4), last] = -100
    assert model(**batch).loss != model(**{**batch, "labels": without_end}).loss
    other_padding = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    torch.testing.assert_close(model(**{**batch, "input_ids": other_padding}).loss, model(**batch).loss)


def test_without_labels_it_gives_the_logits_of_the_captions_tokens(model: Model, batch: Batch) -> None:
    labels = batch.pop("labels")
    logits = model(**batch).logits
    assert logits.shape == (*batch["input_ids"].shape, 320)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, model(**batch, labels=labels).loss)


def test_features_computed_before_give_the_same_loss_and_captions(model: Model, batch: Batch) -> None:
    pixel_values = batch.pop("pixel_values")
    features = model.image_features(pixel_values)
    torch.testing.assert_close(model(**batch, image_features=features).loss, model(pixel_values, **batch).loss)
    assert torch.equal(model.generate(image_features=features), model.generate(pixel_values))


def test_projected_features_are_those_that_clip_compares_with_texts(
    model: Model, backbones: dict[str, str], batch: Batch
) -> None:
    clip = CLIPModel.from_pretrained(backbones["vision"]).eval()
    expected = clip.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    torch.testing.assert_close(model.image_features(batch["pixel_values"]), expected)


@torch.no_grad()
def _one_by_one(model: Model, pixel_values: Tensor, steps: int) -> list[list[int]]:
    """The seed's way: one image at a time, the whole sequence once more for each token."""
    captions = []
    for image in pixel_values:
        prefix = model.prefix_embeds(model.image_features(image[None]))
        tokens: list[int] = []
        while len(tokens) < steps and 0 not in tokens:
            embeds = model.language.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
            logits = model.language(inputs_embeds=torch.cat([prefix, embeds], dim=1)).logits
            tokens.append(int(logits[0, -1].argmax()))
        captions.append(tokens)
    return captions


def test_greedy_captions_of_a_batch_equal_those_made_one_by_one_without_a_cache(model: Model, batch: Batch) -> None:
    generated = model.generate(batch["pixel_values"], max_new_tokens=12)
    expected = _one_by_one(model, batch["pixel_values"], 12)
    assert len({tuple(tokens) for tokens in expected}) > 1  # the image matters
    for row, tokens in zip(generated.tolist(), expected, strict=True):
        assert row[: len(tokens)] == tokens


def test_beams_find_captions_at_least_as_probable_as_greedy_ones(model: Model, batch: Batch) -> None:
    def log_probability(generated: Tensor) -> Tensor:
        mask = torch.cumsum(generated == 0, dim=1) - (generated == 0).long() == 0
        logits = model(batch["pixel_values"], generated).logits.log_softmax(-1)
        return (logits.gather(2, generated[..., None])[..., 0] * mask).sum(dim=1)

    with torch.no_grad():
        greedy = log_probability(model.generate(batch["pixel_values"], max_new_tokens=4))
        beams = model.generate(batch["pixel_values"], max_new_tokens=4, num_beams=20, length_penalty=0.0)
        assert (log_probability(beams) >= greedy - 1e-4).all()


def test_sampling_depends_on_the_random_seed_alone(model: Model, batch: Batch) -> None:
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(batch["pixel_values"], do_sample=True, temperature=2.0, max_new_tokens=8).tolist())
    assert draws[0] == draws[1] != draws[2]


def test_a_prompt_stands_between_image_and_caption_and_is_not_learnt(
    section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor, batch: Batch
) -> None:
    torch.manual_seed(0)
    prompted = build_captioner_model(section(prompt="a dog"), processor=processor, image_size=32).eval()
    ids = processor.tokenizer("a dog", add_special_tokens=False)["input_ids"]
    assert prompted.config.prompt_ids == ids and ids
    torch.testing.assert_close(prompted(**batch).loss, _seed_loss(prompted, batch))
    embeds = prompted.prefix_embeds(prompted.image_features(batch["pixel_values"]))
    assert embeds.shape[1] == 3 + len(ids)


@pytest.mark.parametrize(
    ("changes", "prefix_length"),
    [
        ({"projector": {"prefix_length": None}}, 10),
        ({"projector": {"prefix_length": None}, "vision": {"features": "patches"}}, 4),
        ({"projector": {"kind": "transformer", "width": 16, "heads": 2, "layers": 1}}, 3),
        ({"projector": {"kind": "transformer", "width": 16, "heads": 2}, "vision": {"features": "patches"}}, 3),
        ({"projector": {"hidden_dims": []}, "vision": {"features": "cls"}}, 3),
        ({"vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "features": "avg"}}, 3),
    ],
)
@pytest.mark.slow
def test_every_projector_and_feature_trains_from_the_image_on(
    section: Callable[..., CaptionerModelSection],
    processor: CaptionerProcessor,
    batch: Batch,
    changes: dict[str, Any],
    prefix_length: int,
) -> None:
    model = build_captioner_model(section(**changes), processor=processor, image_size=32)
    assert model.config.prefix_length == prefix_length
    assert model.prefix_embeds(model.image_features(batch["pixel_values"])).shape == (4, prefix_length, 32)
    model(**batch).loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.projector.parameters()
    )
    assert all(parameter.grad is not None for parameter in model.vision.parameters())
    Partition.of(model)


def test_groups_run_from_the_image_to_the_last_layer_and_hold_each_parameter_once(model: Model) -> None:
    partition = Partition.of(model)
    tops = list(dict.fromkeys(group.split(".")[0] for group in partition))
    assert tops == ["vision", "projector", "language"]
    assert partition.select("language:last 1") == ("language.layers.1", "language.final")


def test_frozen_encoders_get_no_gradient_and_the_vision_tower_builds_no_graph(model: Model, batch: Batch) -> None:
    apply_freezing(model, Partition.of(model), ["projector"])
    assert not model.image_features(batch["pixel_values"]).requires_grad
    model(**batch).loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"projector"}


def test_gradient_checkpointing_changes_no_gradient(model: Model, batch: Batch) -> None:
    plain = torch.autograd.grad(model(**batch).loss, model.projector.layers[0].weight)[0]
    model.gradient_checkpointing_enable()
    model.train()
    checkpointed = torch.autograd.grad(model(**batch).loss, model.projector.layers[0].weight)[0]
    torch.testing.assert_close(checkpointed, plain)


def test_accumulated_batches_weigh_each_token_alike(model: Model, batch: Batch) -> None:
    weight = model.projector.layers[0].weight
    count = (batch["labels"] != -100).sum()
    whole = torch.autograd.grad(model(**batch, num_items_in_batch=count).loss, weight)[0]
    parts = [{name: tensor[start : start + 1] for name, tensor in batch.items()} for start in range(4)]
    summed = sum(torch.autograd.grad(model(**part, num_items_in_batch=count).loss, weight)[0] for part in parts)
    torch.testing.assert_close(summed, whole)


def test_a_config_of_a_second_copy_of_its_class_is_taken_as_it_is(model: Model, folder: Path) -> None:
    """transformers may import a release's own code twice, for the config and for the model."""
    source = sys.modules[PrefixCaptionerConfig.__module__].__file__
    assert source is not None
    spec = importlib.util.spec_from_file_location("mmhf.models.captioner.second_copy", source)
    assert spec is not None and spec.loader is not None
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    model.save_pretrained(folder)
    config = second.PrefixCaptionerConfig.from_pretrained(folder)
    assert not isinstance(config, PrefixCaptionerConfig)
    loaded = PrefixCaptionerForConditionalGeneration.from_pretrained(folder, config=config)
    assert type(loaded.config) is second.PrefixCaptionerConfig
