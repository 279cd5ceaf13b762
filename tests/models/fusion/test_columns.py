"""A third modality: columns of a table as vectors, fused with image and text."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_processors import square_images, word_tokenizer

from mmhf.errors import InputError
from mmhf.models.fusion import FusionForImageTextClassification, FusionProcessor
from mmhf.models.fusion.building import check_same_columns
from mmhf.models.fusion.column_features import CategoryColumn, ColumnFeatures, NumberColumn, as_number
from mmhf.models.fusion.configuration_fusion import STRATEGIES, FusionConfig
from mmhf.models.fusion.modeling_fusion import Fusion
from mmhf.models.partition import Partition
from mmhf.recipe.fusion_recipe import FusionModelSection

FEATURES = ColumnFeatures(
    [NumberColumn("age", 50.0, 20.0, True), NumberColumn("size", 2.0, 0.5, False)],
    [CategoryColumn("sex", ("female", "male"), True), CategoryColumn("site", ("back", "face", "hand"), False)],
)


def config_with_columns(tiny_config, **changes) -> FusionConfig:
    return tiny_config(columns=FEATURES.to_dict(), **changes)


@pytest.fixture
def rows() -> torch.Tensor:
    return FEATURES.encode(
        [{"age": 70, "sex": "male", "site": "back"}, {"age": 30, "size": 3, "site": "hand"}, {"sex": "female"}]
    )


def test_a_row_becomes_scaled_numbers_flags_and_ones():
    row = {"age": 60, "size": "2.25", "sex": "male", "site": "face"}
    assert FEATURES.encode([row]).tolist() == [[0.5, 0, 0.5, 0, 1, 0, 0, 1, 0]]
    # Where training rows lacked a value, a flag says so; elsewhere it is as the middle, or as unknown.
    assert FEATURES.encode([{}, None]).tolist() == [[0, 1, 0, 0, 0, 1, 0, 0, 0], [0] * 9]
    assert FEATURES.encode([{**row, "site": "nose"}])[0, 6:].tolist() == [0, 0, 0]


def test_what_training_never_met_is_named():
    assert FEATURES.notes({"age": 1, "size": 1, "sex": "male", "site": "back"}) == []
    assert FEATURES.notes({"size": 1, "site": "Hand"}) == ["site: 'Hand' is unknown to the model; did you mean hand?"]
    assert FEATURES.notes({}) == [
        "size: is missing, as in no training row; read as 2",
        "site: is missing, as in no training row; read as unknown",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"aeg": 1}, "columns.aeg: the model reads no such column; did you mean age.*age, size, sex, site"),
        ({"age": "old"}, "columns.age: 'old' is no number"),
        ({"age": True}, "columns.age: 'true' is no number"),
        ({"age": [4]}, "columns.age: .*is no number"),
        ({"age": float("inf")}, "columns.age: 'inf' is no number"),
        ({"age": "1_0"}, "columns.age: '1_0' is no number"),
        ({"sex": ["male"]}, "columns.sex: expected one category, got a list"),
    ],
)
def test_other_columns_and_values_of_the_wrong_kind_are_named(row, message):
    with pytest.raises(InputError, match=message):
        FEATURES.encode([row])
    assert FEATURES.find_problem(row) is not None and FEATURES.find_problem({"age": 4}) is None


def test_numbers_are_read_as_tables_write_them():
    assert [as_number(value) for value in (3, " 4.5 ", "1e2", None, "", float("nan"), "nan")] == [
        *(3, 4.5, 100),
        *(None,) * 4,
    ]


def test_features_come_back_from_the_config_that_transformers_sorts():
    features = ColumnFeatures.from_dict(json.loads(json.dumps(FEATURES.to_dict(), sort_keys=True)))
    row = {"age": 20, "sex": "male", "site": "hand"}
    assert features.names == FEATURES.names and torch.equal(features.encode([row]), FEATURES.encode([row]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_fuses_three_and_trains_every_parameter(strategy, tiny_config, batch, rows):
    config = config_with_columns(tiny_config, strategy=strategy, columns_hidden_dims=[6], stand_in="learnt")
    model = FusionForImageTextClassification(config)
    output = model(**batch, columns=rows)
    assert output.columns_embeds.shape == (3, 16) and output.modalities.tolist() == [[1, 1, 1]] * 3
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_strategies_compute_what_they_say_of_three(tiny_config):
    embeds = image, text, columns = list(torch.randn(3, 5, 16))
    fused = {name: Fusion(config_with_columns(tiny_config, strategy=name, hidden_dims=[])) for name in STRATEGIES}
    assert torch.equal(fused["concat_mlp"].fuse(*embeds), torch.cat(embeds, -1))
    pairs = [(image, text), (image, columns), (text, columns)]
    products, differences = [a * b for a, b in pairs], [(a - b).abs() for a, b in pairs]
    assert torch.equal(fused["product_difference"].fuse(*embeds), torch.cat([*embeds, *products, *differences], -1))
    with torch.no_grad():
        fused["weighted_sum"].modality_weights.copy_(torch.tensor([2.0, 1.0, 1.0]).log())
        fused["gated"].gate.weight.zero_()
        fused["gated"].gate.bias.copy_(torch.tensor([2.0, 1.0, 1.0]).log().repeat_interleave(16))
    for name in ("weighted_sum", "gated"):
        assert torch.allclose(fused[name].fuse(*embeds), 0.5 * image + 0.25 * text + 0.25 * columns, atol=1e-6)
    assert [fusion.output_width for fusion in fused.values()] == [48, 16, 144, 16]


def test_columns_reach_the_logits_and_their_mask_takes_them_away(tiny_config, batch, rows):
    model = FusionForImageTextClassification(config_with_columns(tiny_config, initializer_range=0.5)).eval()
    with torch.no_grad():
        seen = model(**batch, columns=rows).logits
        absent = model(**batch).logits
        assert (seen - absent).abs().min(dim=0).values.max() > 1e-4
        hidden = model(**batch, columns=rows, columns_mask=torch.tensor([1, 0, 1])).logits
        torch.testing.assert_close(hidden[[0, 2]], seen[[0, 2]])
        torch.testing.assert_close(hidden[1], absent[1])
        model.config.mask = "columns"
        torch.testing.assert_close(model(**batch, columns=rows).logits, absent)


def test_running_by_parts_and_from_embeddings_equals_the_whole(tiny_config, batch, rows):
    model = FusionForImageTextClassification(config_with_columns(tiny_config)).eval()
    image = model.image_features(batch["pixel_values"])
    text = model.text_features(batch["input_ids"], batch["attention_mask"])
    whole = model(**batch, columns=rows)
    by_parts = model.classify(image, text, batch["labels"], columns=rows)
    assert torch.equal(by_parts.loss, whole.loss)
    features = {name: value for name, value in batch.items() if name == "labels"}
    assert torch.equal(model(**features, image_features=image, text_features=text, columns=rows).loss, whole.loss)
    embeds = [whole.image_embeds, whole.text_embeds, whole.columns_embeds]
    torch.testing.assert_close(model.classify_embeds(embeds, torch.ones(3, 3, dtype=torch.bool)), whole.logits)


def test_columns_are_a_group_of_their_own(tiny_config):
    model = FusionForImageTextClassification(config_with_columns(tiny_config, columns_hidden_dims=[6]))
    partition = Partition.of(model)
    assert partition["columns"] == tuple(f"columns_projection.{n}.{p}" for n in (0, 3) for p in ("weight", "bias"))
    assert list(partition)[-3:] == ["columns", "fusion", "head"]
    with pytest.raises(InputError, match="matches no parameter group"):
        Partition.of(FusionForImageTextClassification(tiny_config())).select("columns")


def test_auxiliary_classifiers_learn_from_columns(tiny_config, batch, rows):
    model = FusionForImageTextClassification(config_with_columns(tiny_config, auxiliary_weights={"columns": 1.0}))
    model(**batch, columns=rows).loss.backward()
    assert model.auxiliary_heads["columns"].weight.grad.abs().sum() > 0


def test_a_model_without_columns_refuses_them(model, batch, tiny_config):
    with pytest.raises(ValueError, match="reads no columns"):
        model(**batch, columns=torch.zeros(3, 2))
    for given in ({"mask": "columns"}, {"auxiliary_weights": {"columns": 1.0}}):
        with pytest.raises(ValueError, match="there are none"):
            tiny_config(**given)


def test_the_processor_keeps_what_it_does(tmp_path):
    parts = square_images(32), word_tokenizer()
    processor = FusionProcessor(*parts, columns=FEATURES.to_dict())
    processor.save_pretrained(tmp_path)
    loaded = FusionProcessor.from_pretrained(tmp_path)
    values = [{"age": 70, "sex": "male"}, None]
    batch = loaded(text=["a", "b"], columns=values)
    assert torch.equal(batch["columns"], FEATURES.encode(values))
    assert batch["columns_mask"].tolist() == [1, 0] and "columns" in loaded.model_input_names
    assert set(loaded(columns=values[0])) == {"columns"}
    with pytest.raises(ValueError, match="2 texts for 1 rows of columns"):
        loaded(text=["a", "b"], columns=[{}])
    with pytest.raises(ValueError, match="the model reads none"):
        FusionProcessor(*parts)(columns=[{}])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, r"write \{numbers: \[age, size\], categories: \[sex, site\]\}"),
        ({"numbers": ["age"]}, "age, but init_from p reads age, size, sex, site"),
    ],
)
def test_a_parent_must_read_the_same_columns(columns, message):
    section = FusionModelSection.model_validate({"columns": columns})
    with pytest.raises(InputError, match=message):
        check_same_columns(FEATURES.to_dict(), section, "p")
    same = {"numbers": ["age", "size"], "categories": ["sex", "site"]}
    check_same_columns(FEATURES.to_dict(), FusionModelSection.model_validate({"columns": same}), "p")
    with pytest.raises(InputError, match="reads no columns"):
        check_same_columns(None, FusionModelSection.model_validate({"columns": same}), "p")
