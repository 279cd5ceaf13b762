from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, DistilBertConfig

from mmhf.models.classification_loss import ClassificationLoss
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.models.fusion.configuration_fusion import STRATEGIES
from mmhf.models.fusion.modeling_fusion import Fusion

TINY_CLIP = CLIPVisionConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37, image_size=32, patch_size=8
)


def same_weights(first, second) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("hidden_dims", [[], [8], [8, 6]])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.slow
def test_each_strategy_classifies_and_trains_every_parameter(strategy, hidden_dims, tiny_config, batch):
    torch.manual_seed(0)
    model = FusionForImageTextClassification(tiny_config(strategy=strategy, hidden_dims=hidden_dims))
    output = model(**batch)
    assert output.logits.shape == (3, 3)
    assert output.image_embeds.shape == output.text_embeds.shape == (3, 16)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_activations_of_the_recipe_exist(activation, tiny_config):
    Fusion(tiny_config(activation=activation))


def test_strategies_compute_what_they_say(tiny_config):
    image, text = torch.randn(5, 16), torch.randn(5, 16)
    fused = {strategy: Fusion(tiny_config(strategy=strategy, hidden_dims=[])) for strategy in STRATEGIES}
    assert torch.equal(fused["concat_mlp"].fuse(image, text), torch.cat([image, text], -1))
    product = fused["product_difference"].fuse(image, text)
    assert torch.equal(product, torch.cat([image, text, image * text, (image - text).abs()], -1))
    weighted = fused["weighted_sum"]
    with torch.no_grad():
        weighted.modality_weights.copy_(torch.tensor([2.0, 0.0]).log1p())
    assert torch.allclose(weighted.fuse(image, text), 0.75 * image + 0.25 * text, atol=1e-6)
    gated = fused["gated"]
    with torch.no_grad():
        gated.gate.weight.zero_()
        gated.gate.bias.copy_(torch.arange(16.0) - 8)
    gate = torch.sigmoid(torch.arange(16.0) - 8)
    assert torch.allclose(gated.fuse(image, text), gate * image + (1 - gate) * text, atol=1e-6)
    assert [fusion.output_width for fusion in fused.values()] == [32, 16, 64, 16]


def test_normalised_embeddings_have_length_one(tiny_config, batch):
    output = FusionForImageTextClassification(tiny_config(normalize=True))(**batch)
    assert torch.allclose(output.image_embeds.norm(dim=-1), torch.ones(3))
    assert torch.allclose(output.text_embeds.norm(dim=-1), torch.ones(3))
    assert output.loss is not None


def test_both_modalities_and_no_padding_reach_the_logits(model, batch):
    del batch["labels"]
    with torch.no_grad():
        before = model(**batch)
        assert before.loss is None
        for changed in ({"pixel_values": -batch["pixel_values"]}, {"input_ids": batch["input_ids"].flip(1)}):
            assert not torch.allclose(model(**{**batch, **changed}).logits, before.logits)
        padded = batch["input_ids"].clone()
        padded[0, 4:] = 7
        assert torch.allclose(model(**{**batch, "input_ids": padded}).logits, before.logits, atol=1e-6)
        full = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
        without = {name: value for name, value in batch.items() if name != "attention_mask"}
        torch.testing.assert_close(model(**full).logits, model(**without).logits)


def test_running_by_parts_equals_the_whole(model, batch):
    image = model.image_features(batch["pixel_values"])
    text = model.text_features(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(model.classify(image, text, batch["labels"]).loss, model(**batch).loss)


@pytest.mark.parametrize("class_weights", [None, [0.2, 1.0, 3.5]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [0, -100, 2, -100]])
def test_loss_equals_that_of_torch(labels, label_smoothing, class_weights):
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor(labels)
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)
    loss = ClassificationLoss(class_weights, label_smoothing)(logits, labels)
    assert torch.allclose(loss, expected, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("class_weights", [None, [0.2, 1.0, 3.5]])
def test_a_batch_without_labels_has_loss_and_gradients_zero(class_weights, tiny_config, batch):
    model = FusionForImageTextClassification(tiny_config(class_weights=class_weights, label_smoothing=0.1))
    loss = model(**{**batch, "labels": torch.full((3,), -100)}).loss
    assert loss.item() == 0
    loss.backward()
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


def test_an_ignored_row_changes_neither_loss_nor_gradients_of_the_others(model, batch):
    labels = torch.tensor([0, -100, 2])
    whole = model(**{**batch, "labels": labels}).loss
    kept = [0, 2]
    part = model(**{name: value[kept] for name, value in batch.items()}).loss
    assert torch.allclose(whole, part, atol=1e-6)


def test_loss_is_fp32_even_for_half_logits():
    assert ClassificationLoss()(torch.randn(3, 3).bfloat16(), torch.tensor([0, 1, 2])).dtype == torch.float32


def test_new_layers_start_as_transformers_starts_them(tiny_config):
    torch.manual_seed(0)
    config = tiny_config(embedding_dim=256, hidden_dims=[256], strategy="gated")
    model = FusionForImageTextClassification(config)
    for layer in (model.vision_projection, model.text_projection, model.fusion.gate, model.fusion.hidden[0]):
        assert layer.weight.std().item() == pytest.approx(config.initializer_range, rel=0.05)
        assert layer.bias.eq(0).all()


def test_a_fresh_timm_encoder_starts_as_timm_starts_it(tiny_config, tiny_timm):
    model = FusionForImageTextClassification(tiny_config(vision_config=tiny_timm("test_resnet")))
    blocks = [module for module in model.vision.modules() if type(module).__name__ == "BasicBlock"]
    assert blocks and all(block.bn2.weight.eq(0).all() for block in blocks)


def test_given_encoders_keep_their_weights(tiny_config):
    config = tiny_config()
    vision, text = AutoModel.from_config(config.vision_config), AutoModel.from_config(config.text_config)
    before = copy.deepcopy(vision.state_dict()), copy.deepcopy(text.state_dict())
    model = FusionForImageTextClassification.from_encoders(config, vision=vision, text=text)
    assert model.vision is vision and model.text is text
    assert all(torch.equal(vision.state_dict()[name], value) for name, value in before[0].items())
    kept = {name: value for name, value in before[1].items() if not name.startswith("pooler.")}
    assert kept.keys() == text.state_dict().keys()
    assert all(torch.equal(text.state_dict()[name], value) for name, value in kept.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["weighted_sum", "gated"])
@pytest.mark.slow
def test_saved_equals_loaded(strategy, dtype, tiny_config, batch, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(
        vision_config=TINY_CLIP,
        text_config=DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=37, vocab_size=99),
        strategy=strategy,
        vision_pooling="concat",
        class_weights=[0.5, 1.0, 2.0],
    )
    model = FusionForImageTextClassification(config).to(dtype).eval()
    model.loss.float()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for loader in (FusionForImageTextClassification, AutoModel):
        loaded = loader.from_pretrained(tmp_path).eval()
        assert type(loaded) is FusionForImageTextClassification
        assert same_weights(model, loaded)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.loss.weight.tolist() == [0.5, 1.0, 2.0]
        if dtype == torch.float32:
            with torch.no_grad():
                torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
                torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)


def test_saving_twice_gives_the_same_files(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    FusionForImageTextClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_config_round_trip_with_nested_configs(model, tmp_path):
    config = model.config
    config.save_pretrained(tmp_path)
    for loader in (FusionConfig, AutoConfig):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded.vision_config) is type(config.vision_config)
        assert type(loaded.text_config) is type(config.text_config)
        assert loaded.vision_config.pretrained_cfg == config.vision_config.pretrained_cfg
        first, second = config.to_dict(), loaded.to_dict()
        for side in (first, second):
            for key in ("architectures", "dtype", "_name_or_path"):
                side.pop(key, None)
        assert first == second
        assert loaded.id2label == {0: "real", 1: "fake", 2: "satire"}


def test_config_refuses_what_cannot_be(tiny_config):
    with pytest.raises(ValueError, match="unknown fusion strategy 'concat'"):
        tiny_config(strategy="concat")
    with pytest.raises(ValueError, match="2 class weights for 3 labels"):
        tiny_config(class_weights=[1.0, 2.0])


def test_gradient_checkpointing_gives_the_same_gradients(tiny_config, tiny_bert, batch):
    text = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = FusionForImageTextClassification(tiny_config(text_config=text)).train()
    model.vision.eval()
    model(**batch).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert model.is_activation_checkpointing
    assert model.vision.timm_model.grad_checkpointing
    assert all(layer.gradient_checkpointing for layer in model.text.encoder.layer)
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name
    model.activation_checkpointing_disable()
    assert not model.vision.timm_model.grad_checkpointing
