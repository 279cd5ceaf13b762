from __future__ import annotations

import copy
import json

import pytest
import torch

from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.fusion.configuration_fusion import STRATEGIES

BOTH, NO_IMAGE, NO_TEXT = [1, 1, 1], {"image_mask": [1, 0, 1]}, {"text_mask": [1, 0, 1]}


def masks(**given: list[int]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in given.items()}


def logits_of(model, batch, **changes) -> torch.Tensor:
    with torch.no_grad():
        return model(**{**batch, **changes}).logits


@pytest.fixture(params=["zero", "learnt"])
def masked_model(request, tiny_config) -> FusionForImageTextClassification:
    torch.manual_seed(0)
    model = FusionForImageTextClassification(tiny_config(stand_in=request.param, initializer_range=0.5)).eval()
    if request.param == "learnt":
        with torch.no_grad():
            model.fusion.stand_ins.normal_()
    return model


def test_masks_of_ones_change_nothing(model, batch):
    expected = logits_of(model, batch)
    assert torch.equal(logits_of(model, batch, **masks(image_mask=BOTH, text_mask=BOTH)), expected)


@pytest.mark.parametrize(("hidden", "tensor"), [(NO_IMAGE, "pixel_values"), (NO_TEXT, "input_ids")])
def test_a_missing_modality_has_no_effect_and_changes_its_own_row_alone(masked_model, batch, hidden, tensor):
    seen, unseen = logits_of(masked_model, batch), logits_of(masked_model, batch, **masks(**hidden))
    torch.testing.assert_close(unseen[[0, 2]], seen[[0, 2]])
    assert (unseen[1] - seen[1]).abs().max() > 1e-4
    other = batch[tensor].clone()
    other[1] = other[0]
    assert torch.equal(logits_of(masked_model, {**batch, tensor: other}, **masks(**hidden))[1], unseen[1])


def test_the_stand_in_is_what_takes_the_place(masked_model, batch):
    output = masked_model(**batch, **masks(image_mask=[0, 1, 1], text_mask=[1, 1, 0]))
    stand_ins = masked_model.fusion.stand_ins
    expected = torch.zeros(2, 16) if stand_ins is None else stand_ins
    assert torch.equal(output.image_embeds[0], expected[0]) and torch.equal(output.text_embeds[2], expected[1])
    assert output.modalities.tolist() == [[False, True], [True, True], [True, False]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_absent_tensors_are_missing_in_all_rows(strategy, tiny_config, batch):
    model = FusionForImageTextClassification(tiny_config(strategy=strategy, initializer_range=0.5)).eval()
    nothing = masks(image_mask=[0, 0, 0])
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(logits_of(model, text), logits_of(model, batch, **nothing))
    images = {"pixel_values": batch["pixel_values"]}
    torch.testing.assert_close(logits_of(model, images), logits_of(model, batch, **masks(text_mask=[0, 0, 0])))
    with pytest.raises(ValueError, match="pixel_values, input_ids or both"):
        model(labels=batch["labels"])


@pytest.mark.parametrize("hidden", ["image", "text"])
def test_a_mask_for_the_whole_run_equals_masking_every_row(hidden, tiny_config, batch):
    torch.manual_seed(0)
    config = tiny_config(stand_in="learnt", initializer_range=0.5)
    free = FusionForImageTextClassification(config).eval()
    masked = FusionForImageTextClassification(copy.deepcopy(config)).eval()
    masked.config.mask = hidden
    masked.load_state_dict(free.state_dict())
    assert torch.equal(logits_of(masked, batch), logits_of(free, batch, **masks(**{f"{hidden}_mask": [0, 0, 0]})))
    masked.train()(**batch).loss.backward()
    encoder = masked.vision if hidden == "image" else masked.text
    assert all(parameter.grad is None for parameter in encoder.parameters()), "it is not run"
    others = [name for name, value in masked.named_parameters() if value.grad is None]
    assert others and all(name.startswith("vision." if hidden == "image" else "text.") for name in others)


def test_every_parameter_has_a_gradient_whatever_is_missing(tiny_config, batch):
    for image_mask, text_mask in ([BOTH, BOTH], [[0, 0, 0], BOTH], [[1, 0, 0], [0, 1, 1]]):
        model = FusionForImageTextClassification(
            tiny_config(stand_in="learnt", auxiliary_weights={"image": 0.5, "text": 0.5})
        )
        model(**batch, **masks(image_mask=image_mask, text_mask=text_mask)).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_missing_images_leave_batch_norm_alone(tiny_config, batch):
    torch.manual_seed(0)
    model = FusionForImageTextClassification(tiny_config()).train()
    other = copy.deepcopy(model)
    changed = batch["pixel_values"].clone()
    changed[1] = 100.0
    model(**batch, **masks(**NO_IMAGE))
    other(**{**batch, "pixel_values": changed}, **masks(**NO_IMAGE))
    buffers = dict(other.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_the_auxiliary_loss_is_that_of_each_modality_over_the_rows_that_have_it(tiny_config, batch):
    torch.manual_seed(0)
    weights = {"image": 0.5, "text": 0.25}
    model = FusionForImageTextClassification(tiny_config(auxiliary_weights=weights, initializer_range=0.5)).eval()
    output = model(**batch, **masks(image_mask=[1, 0, 1], text_mask=[1, 1, 1]))
    main = model.loss(output.logits, batch["labels"])
    image = model.loss(model.auxiliary_heads["image"](output.image_embeds)[[0, 2]], batch["labels"][[0, 2]])
    text = model.loss(model.auxiliary_heads["text"](output.text_embeds), batch["labels"])
    torch.testing.assert_close(output.loss, main + 0.5 * image * 2 / 3 + 0.25 * text)
    assert {"auxiliary_heads.image.weight", "auxiliary_heads.text.bias"} <= set(model.parameter_groups()["head"])


def test_auxiliary_losses_add_up_however_rows_are_cut(tiny_config, batch):
    config = tiny_config(
        auxiliary_weights={"image": 0.5}, class_weights=[1.0, 2.0, 3.0], focal_gamma=1.0, initializer_range=0.5
    )
    model = FusionForImageTextClassification(config).eval()
    given = {**batch, **masks(image_mask=[1, 0, 1])}
    count = model.loss.count(batch["labels"])
    parts = [
        model(**{name: tensor[rows] for name, tensor in given.items()}, num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), model(**given).loss)


def test_projections_and_fusion_take_lists(tiny_config, batch):
    config = tiny_config(
        image_hidden_dims=[12, 10],
        image_activation=["gelu", "tanh"],
        image_dropout=[0.1, 0.2],
        hidden_dims=[8, 6],
        activation=["relu", "silu"],
        dropout=[0.3, 0.4],
    )
    model = FusionForImageTextClassification(config)
    kinds = [type(layer).__name__ for layer in model.vision_projection]
    assert kinds == ["Linear", "GELUActivation", "Dropout", "Linear", "Tanh", "Dropout", "Linear"]
    assert [layer.p for layer in model.vision_projection if isinstance(layer, torch.nn.Dropout)] == [0.1, 0.2]
    assert [layer.p for layer in model.fusion.hidden if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.4]
    assert isinstance(model.text_projection, torch.nn.Linear), "no hidden layers: the weights have their old names"
    assert model(**batch).logits.shape == (3, 3)
    with pytest.raises(ValueError, match="1 dropouts for 2 hidden layers"):
        FusionForImageTextClassification(tiny_config(hidden_dims=[8, 6], dropout=[0.3]))


@pytest.mark.slow
def test_everything_survives_saving(tiny_config, batch, tmp_path):
    config = tiny_config(
        stand_in="learnt",
        auxiliary_weights={"text": 0.5},
        focal_gamma=2.0,
        logit_adjustment=[0.0, -1.0, -2.0],
        text_hidden_dims=[8],
        missing_modalities=["image"],
    )
    model = FusionForImageTextClassification(config).eval()
    with torch.no_grad():
        model.fusion.stand_ins.normal_()
    model.config.calibration_temperature, model.config.abstain_below = 2.0, 0.7
    model.save_pretrained(tmp_path)
    loaded = FusionForImageTextClassification.from_pretrained(tmp_path).eval()
    given = {**batch, **masks(**NO_IMAGE)}
    one, two = model(**given), loaded(**given)
    torch.testing.assert_close(two.logits, one.logits)
    torch.testing.assert_close(two.loss, one.loss)
    assert (loaded.config.calibration_temperature, loaded.config.abstain_below) == (2.0, 0.7)
    loaded.config.calibration_temperature = 1.0
    uncalibrated = loaded(**given)
    torch.testing.assert_close(uncalibrated.logits / 2, one.logits)
    # the loss is of the logits before the temperature
    torch.testing.assert_close(uncalibrated.loss, one.loss)


def test_a_model_saved_before_masks_existed_gives_the_same(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in (
        *("stand_in", "mask", "missing_modalities", "auxiliary_weights", "focal_gamma", "logit_adjustment"),
        *("image_hidden_dims", "image_activation", "image_dropout", "text_hidden_dims", "text_activation"),
        *("text_dropout", "calibration_temperature", "abstain_below"),
    ):
        config.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, info = FusionForImageTextClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits_of(loaded.eval(), batch), logits_of(model, batch))
