"""For each family: what `forward` makes of a part's features is what it makes of the inputs, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedModel, Qwen3Config, ViTConfig

from mmhf.features.parts import TEXT, VISION, FeaturePart, HasFeatureParts
from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.models.partition import Partition
from mmhf.training.weights import apply_freezing

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
CLIP = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, projection_dim=24)
Batch = dict[str, Tensor]


@pytest.fixture
def make_fusion(tiny_config: Callable[..., FusionConfig]) -> Callable[..., FusionForImageTextClassification]:
    def make(**changes: Any) -> FusionForImageTextClassification:
        return FusionForImageTextClassification(
            tiny_config(**{"text_pooling": "mean", "initializer_range": 0.5, "strategy": "gated", **changes})
        )

    return make


def classifier(tiny_timm: Any) -> BackboneForImageClassification:
    config = BackboneForImageClassificationConfig(
        vision_config=tiny_timm("test_resnet"), head_hidden_dim=8, id2label={0: "a", 1: "b", 2: "c"}
    )
    return BackboneForImageClassification(config)


def captioner(features: str, **changes: Any) -> PrefixCaptionerForConditionalGeneration:
    language = Qwen3Config(**SIZES, vocab_size=99, num_key_value_heads=1, head_dim=16)
    config = PrefixCaptionerConfig(
        copy.deepcopy(CLIP), language, vision_features=features, prefix_length=4, projector_hidden_dims=[16], **changes
    )
    return PrefixCaptionerForConditionalGeneration(config)


def dual_encoder(**changes: Any) -> DualEncoderModel:
    text = CLIPTextConfig(**SIZES, vocab_size=99, max_position_embeddings=16, eos_token_id=2)
    vision = ViTConfig(**SIZES, image_size=32, patch_size=8)
    values = {"vision_pooling": "cls", "eot_token_id": 1, "embedding_dim": 16, **changes}
    return DualEncoderModel(DualEncoderConfig(vision, text, **values))


@pytest.fixture(
    params=[
        *("fusion", "learnt stand-ins", "image classifier", "captioner", "captioner's patches"),
        *("dual encoder", "learnt pooling"),
    ]
)
def model(request: Any, make_fusion: Any, tiny_timm: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "fusion": make_fusion,
        "learnt stand-ins": lambda: make_fusion(stand_in="learnt", auxiliary_weights={"image": 0.5}),
        "image classifier": lambda: classifier(tiny_timm),
        "captioner": lambda: captioner("projected"),
        "captioner's patches": lambda: captioner("patches", projector="transformer", projector_width=16),
        "dual encoder": dual_encoder,
        "learnt pooling": lambda: dual_encoder(vision_pooling="attention", text_pooling="attention"),
    }
    return makers[request.param]().eval()


@pytest.fixture
def inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Of the model's family, with what gives a loss."""
    if isinstance(model, BackboneForImageClassification):
        return {name: batch[name] for name in ("pixel_values", "labels")}
    if isinstance(model, PrefixCaptionerForConditionalGeneration):
        return {**batch, "labels": batch["input_ids"].where(batch["attention_mask"] > 0, -100)}
    if isinstance(model, DualEncoderModel):
        return {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")} | {"return_loss": True}
    return batch


def with_features(model: Any, parts: tuple[FeaturePart, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with features in the place of what they are made of; a dual encoder's loss keeps its captions."""
    taken: dict[str, Any] = dict(inputs)
    for part in parts:
        with torch.no_grad():
            features = model.compute_features(part, **{name: inputs[name] for name in part.inputs if name in inputs})
        kept = ("input_ids", "attention_mask") if "return_loss" in inputs else ()
        taken = {name: value for name, value in taken.items() if name not in part.inputs or name in kept}
        taken[part.feature] = features
    return taken


def boundaries(model: Any) -> list[tuple[FeaturePart, list[str]]]:
    """Each part that ends inside the image encoder, and the groups that train above it."""
    groups = list(Partition.of(model))
    vision = Partition.of(model).select("vision")
    found = []
    for first in vision[1:]:
        trained = groups[groups.index(first) :]
        part = model.part_below(VISION, trained, image_size=32)
        assert part is not None and part.boundary == groups[groups.index(first) - 1]
        found.append((part, trained))
    return found


def freeze(model: PreTrainedModel, parts: tuple[FeaturePart, ...]) -> None:
    partition = Partition.of(model)
    frozen = tuple(f"{part.name}." for part in parts)
    apply_freezing(model, partition, [group for group in partition if not group.startswith(frozen)])


def gradients(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_features_give_what_the_inputs_give(model: Any, inputs: dict[str, Any]) -> None:
    assert isinstance(model, HasFeatureParts)
    parts = model.feature_parts()
    assert parts
    for chosen in [*((part,) for part in parts), parts]:
        given = with_features(model, chosen, inputs)
        assert set(given).isdisjoint({"pixel_values"} if VISION in chosen else {})
        one, other = model(**inputs), model(**given)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), "bit for bit"


def test_gradients_of_what_trains_are_the_same(model: Any, inputs: dict[str, Any]) -> None:
    parts = model.feature_parts()
    freeze(model, parts)
    expected = gradients(model, inputs)
    found = gradients(model, with_features(model, parts, inputs))
    assert expected.keys() == found.keys() and expected
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    partition = Partition.of(model)
    assert not any(partition.group_of(name).startswith("vision.") for name in expected)


@pytest.mark.slow
def test_features_at_each_boundary_give_what_the_inputs_give(model: Any, inputs: dict[str, Any]) -> None:
    parts = boundaries(model)
    assert parts
    for part, trained in parts:
        model.use_part(part)
        given = with_features(model, (part,), inputs)
        assert "image_hidden" in given and "pixel_values" not in given
        one, other = model(**inputs), model(**given)
        assert all(torch.equal(one[name], other[name]) for name in one), part.boundary
        apply_freezing(model, Partition.of(model), trained)
        expected, found = gradients(model, inputs), gradients(model, given)
        assert expected.keys() == found.keys(), part.boundary
        assert all(torch.equal(expected[name], found[name]) for name in expected), part.boundary


def test_which_part_stays_as_it_is(model: Any) -> None:
    partition = Partition.of(model)
    vision = partition.select("vision")
    others = [group for group in partition if group not in vision]
    assert model.part_below(VISION, others) == model.part_below(VISION, others, image_size=32) == VISION
    assert model.part_below(VISION, list(partition), image_size=32) is None
    assert model.part_below(VISION, [vision[-1]]) is None, "no boundary without the images' size"
    lone = model.part_below(VISION, [vision[1], *others], image_size=32)
    assert model.part_groups(VISION) == vision and model.part_groups(lone) == vision[:1]
    assert lone is not None and lone.boundary == vision[0], "what is above a trained group is not part of it"
    if TEXT in model.feature_parts():
        assert model.part_below(TEXT, vision) == TEXT
        assert model.part_below(TEXT, partition.select("text:last 1"), image_size=32) is None


@pytest.mark.slow
def test_the_part_in_use_is_neither_saved_nor_guessed(model: Any, inputs: dict[str, Any], tmp_path: Any) -> None:
    part, _ = boundaries(model)[0]
    config = model.config.to_dict()
    model.use_part(part)
    given = with_features(model, (part,), inputs)
    assert torch.equal(copy.deepcopy(model)(**given)[0], model(**given)[0])
    assert model.config.to_dict() == config
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with pytest.raises(ValueError, match="use_part"):
        loaded(**given)
    loaded.use_part(part)
    assert torch.equal(loaded(**given)[0], model(**given)[0])
    loaded.use_part(VISION)
    with pytest.raises(ValueError, match="use_part"):
        loaded(**given)
    impossible = FeaturePart(
        "vision", ("pixel_values",), "image_hidden", list(Partition.of(model).select("vision"))[-1], 32
    )
    with pytest.raises(ValueError, match="cannot go on exactly"):
        loaded.use_part(impossible)


@pytest.mark.slow
def test_checkpointing_that_is_switched_on_later_changes_nothing(tiny_timm: Any, batch: Batch) -> None:
    torch.manual_seed(0)
    model = classifier(tiny_timm).eval()
    inputs = {name: batch[name] for name in ("pixel_values", "labels")}
    part, trained = boundaries(model)[1]
    apply_freezing(model, Partition.of(model), trained)
    model.use_part(part)
    given = with_features(model, (part,), inputs)
    expected = gradients(model, given)
    model.gradient_checkpointing_enable()
    found = gradients(model, given)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(with_features(model, (part,), inputs)["image_hidden"], given["image_hidden"])


def test_nothing_of_a_part_runs_when_its_features_are_given(model: Any, inputs: dict[str, Any]) -> None:
    parts = model.feature_parts()
    given = with_features(model, parts, inputs)

    def refuse(*_: Any) -> None:
        raise AssertionError("it ran")

    for part in parts:
        model.get_submodule(part.name).register_forward_pre_hook(refuse)
    model(**given)
    with pytest.raises(AssertionError, match="it ran"):
        model(**inputs)


def test_parts_are_frozen_groups_by_their_name(model: Any) -> None:
    groups = Partition.of(model)
    assert all(groups.select(part.name) for part in model.feature_parts())


@pytest.mark.parametrize("stand_in", ["zero", "learnt"])
def test_features_of_rows_that_lack_the_modality_are_not_looked_at(
    make_fusion: Any, batch: Batch, stand_in: str
) -> None:
    torch.manual_seed(0)
    model = make_fusion(stand_in=stand_in).eval()
    masks = {"image_mask": torch.tensor([1, 0, 1]), "text_mask": torch.tensor([1, 1, 0])}
    freeze(model, (VISION, TEXT))
    given = with_features(model, (VISION, TEXT), {**batch, **masks})
    expected, logits = gradients(model, {**batch, **masks}), model(**batch, **masks).logits
    part = model.part_below(VISION, ["vision.stages.1"], image_size=32)
    model.use_part(part)
    hidden = with_features(model, (part,), {**batch, **masks})
    hidden["image_hidden"][1] = float("nan")
    torch.testing.assert_close(model(**hidden).logits, logits)
    found = gradients(model, hidden)
    assert found.keys() == expected.keys() and all(gradient.isfinite().all() for gradient in found.values())
    given["image_features"][1], given["text_features"][2] = float("nan"), float("inf")
    # The encoders ran on the other rows alone, in a smaller batch.
    torch.testing.assert_close(model(**given).logits, logits)
    found = gradients(model, given)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(("mask", "offered"), [("image", (TEXT,)), ("text", (VISION,))])
def test_a_modality_that_is_masked_for_the_whole_run_is_no_part(
    make_fusion: Any, batch: Batch, mask: str, offered: tuple[FeaturePart, ...]
) -> None:
    model = make_fusion().eval()
    given = with_features(model, (VISION, TEXT), batch)
    model.config.mask = mask
    assert model.feature_parts() == offered
    assert torch.equal(model(**given).logits, model(**batch).logits)


def test_features_of_one_modality_alone(make_fusion: Any, batch: Batch) -> None:
    model = make_fusion().eval()
    for part in (VISION, TEXT):
        alone = {name: batch[name] for name in part.inputs}
        assert torch.equal(model(**with_features(model, (part,), alone)).logits, model(**alone).logits)


@pytest.mark.slow
def test_what_cannot_be(tiny_timm: Any, make_fusion: Any, batch: Batch) -> None:
    learnt = dual_encoder(text_pooling="attention")
    assert learnt.feature_parts() == (VISION,)
    with pytest.raises(ValueError, match="pooling is learnt"):
        learnt(text_features=torch.zeros(3, 32))
    with pytest.raises(ValueError, match="return_loss needs input_ids"):
        dual_encoder()(image_features=torch.zeros(3, 32), text_features=torch.zeros(3, 32), return_loss=True)
    with pytest.raises(ValueError, match="pixel_values or image_features"):
        classifier(tiny_timm)()
    with pytest.raises(ValueError, match="or their features"):
        make_fusion()(labels=batch["labels"])
