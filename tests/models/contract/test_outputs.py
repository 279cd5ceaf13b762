"""transformers' contract for models: outputs, attentions, tuples, devices, dtypes, export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mmhf.models.family import families
from tests.models.contract.conftest import ENCODERS, FAMILIES, LAYERS, MODELS, inputs_of

EVERY = [(family, encoder) for family in FAMILIES for encoder in ENCODERS]


def result_of(output: Any) -> torch.Tensor:
    return output.logits_per_image if "logits_per_image" in output else output.logits


@pytest.mark.parametrize("family", families().values(), ids=families())
def test_a_config_without_arguments_is_valid_small_and_comes_back(family, tmp_path: Path):
    config = family.load("config")()
    model = family.load("model")(config)
    assert model.num_parameters() < 2_000_000
    config.save_pretrained(tmp_path)
    assert family.load("config").from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config.get_text_config() is not None


@pytest.mark.parametrize(("family", "encoder"), EVERY)
@torch.no_grad()
@pytest.mark.slow
def test_tuples_hold_what_the_output_holds(make_model, family: str, encoder: str):
    model, inputs = make_model(family, encoder), inputs_of(family)
    output, values = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(values, tuple) and len(values) == len(output.to_tuple())
    for one, other in zip(values, output.to_tuple(), strict=True):
        assert torch.equal(one, other)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert not isinstance(model(**inputs, return_dict=True), tuple)


@pytest.mark.parametrize(("family", "encoder"), EVERY)
@torch.no_grad()
@pytest.mark.slow
def test_hidden_states_are_given_when_asked_for_and_change_nothing(make_model, family: str, encoder: str):
    model, inputs = make_model(family, encoder), inputs_of(family)
    plain, asked = model(**inputs), model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(result_of(asked), result_of(plain))
    for output in (asked, _with_config(model, "output_hidden_states", inputs)):
        for states in _of_encoders(output, "hidden_states", family):
            assert len(states) > LAYERS and all(isinstance(each, torch.Tensor) for each in states)
    assert all(each is None for each in _of_encoders(plain, "hidden_states", family))
    assert isinstance(model(**inputs, output_hidden_states=True, return_dict=False), tuple)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attentions_are_given_when_asked_for(make_model, family: str):
    model, inputs = make_model(family), inputs_of(family)
    model.set_attn_implementation("eager")
    for attentions in _of_encoders(model(**inputs, output_attentions=True), "attentions", family):
        assert len(attentions) == LAYERS
        torch.testing.assert_close(attentions[0].sum(-1), torch.ones_like(attentions[0].sum(-1)))


@pytest.mark.parametrize("family", ["fusion", "image classifier", "dual encoder"])
def test_a_timm_encoder_has_no_attentions(make_model, family: str):
    with pytest.raises(ValueError, match="output_attentions"):
        make_model(family, "timm")(**inputs_of(family), output_attentions=True)


@torch.no_grad()
def test_towers_give_tuples_too(make_model):
    model, inputs = make_model("dual encoder"), inputs_of("dual encoder")
    for name, method in (("pixel_values", model.get_image_features), ("input_ids", model.get_text_features)):
        output = method(inputs[name], output_hidden_states=True)
        assert len(output.hidden_states) == LAYERS + 1
        values = method(inputs[name], return_dict=False)
        assert isinstance(values, tuple) and torch.equal(values[1], output.pooler_output)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
@pytest.mark.slow
def test_eager_equals_sdpa_and_the_switch_reaches_every_encoder(make_model, family: str, tmp_path: Path):
    model, inputs = make_model(family), inputs_of(family)
    model.save_pretrained(tmp_path)
    outputs = {}
    for name in ("eager", "sdpa"):
        loaded = MODELS[family].from_pretrained(tmp_path, attn_implementation=name).eval()
        switched = make_model(family)
        switched.set_attn_implementation(name)
        for each in (loaded, switched):
            found = {type(part).__name__: part.config._attn_implementation for part in _encoders(each)}
            assert set(found.values()) == {name}, found
        outputs[name] = result_of(loaded(**inputs))
        torch.testing.assert_close(result_of(switched(**inputs)), outputs[name])
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "encoder"), EVERY)
@torch.no_grad()
@pytest.mark.slow
def test_device_map_and_dtype(make_model, family: str, encoder: str, tmp_path: Path):
    model, inputs = make_model(family, encoder), inputs_of(family)
    model.save_pretrained(tmp_path)
    placed = MODELS[family].from_pretrained(tmp_path, device_map="auto").eval()
    torch.testing.assert_close(result_of(placed(**inputs)), result_of(model(**inputs)))
    half = MODELS[family].from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "encoder"), EVERY)
@torch.no_grad()
def test_export_with_any_batch_size(make_model, family: str, encoder: str):
    model = make_model(family, encoder)
    example, other = inputs_of(family, 3), inputs_of(family, 5)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {name: {0: batch} for name in example}
    if family == "dual encoder":
        # There may be more texts than images.
        shapes["input_ids"] = {0: torch.export.Dim("texts", min=2, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(result_of(program.module()(**other)), result_of(model(**other)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["fusion", "image classifier"])
@torch.no_grad()
def test_several_labels_a_row_mean_what_they_mean_in_transformers(make_model, family: str, tmp_path: Path):
    model = make_model(family, auxiliary_weights={"image": 0.5}) if family == "fusion" else make_model(family)
    model.config.class_weights = [2.0] * model.config.num_labels
    model.save_pretrained(tmp_path)
    several = MODELS[family].from_pretrained(tmp_path, problem_type="multi_label_classification").eval()
    assert several.loss.weight.tolist() == model.config.class_weights, "buffers are not in the weights"
    several.config.auxiliary_weights = {"image": 0.0}
    labels = torch.randint(2, (3, model.config.num_labels), generator=torch.Generator().manual_seed(0)).float()
    output = several(**{**inputs_of(family, 3), "labels": labels})
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=several.loss.weight)(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("family", ["fusion", "image classifier"])
@torch.no_grad()
def test_regression_means_what_it_means_in_transformers(make_model, family: str, tmp_path: Path):
    model = make_model(family, auxiliary_weights={"image": 0.5}) if family == "fusion" else make_model(family)
    model.save_pretrained(tmp_path)
    several = MODELS[family].from_pretrained(tmp_path, problem_type="regression").eval()
    several.config.auxiliary_weights = {"image": 0.0}
    labels = torch.randn(3, model.config.num_labels, generator=torch.Generator().manual_seed(0))
    output = several(**{**inputs_of(family, 3), "labels": labels})
    torch.testing.assert_close(output.loss, torch.nn.MSELoss()(output.logits, labels))
    changes = {"problem_type": "regression", "id2label": {0: "age"}, "label2id": {"age": 0}, "auxiliary_weights": {}}
    one = MODELS[family](type(model.config)(**{**model.config.to_dict(), **changes})).eval()
    output = one(**{**inputs_of(family, 3), "labels": labels[:, 0]})
    assert output.logits.shape == (3, 1)
    torch.testing.assert_close(output.loss, torch.nn.MSELoss()(output.logits[:, 0], labels[:, 0]))


def _encoders(model: Any) -> list[PreTrainedModel]:
    return list(model.encoders().values())


def _with_config(model: Any, name: str, inputs: dict[str, torch.Tensor]) -> Any:
    setattr(model.config, name, True)
    return model(**inputs)


def _of_encoders(output: Any, name: str, family: str) -> list[Any]:
    if family in ("image classifier", "captioner"):
        return [output.get(name)]
    towers = [output.get("vision_model_output"), output.get("text_model_output")]
    return [None if each is None else each[name] for each in towers]
