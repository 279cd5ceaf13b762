from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, pipeline

from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.partition import Partition

Batch = dict[str, torch.Tensor]
MakeModel = Callable[..., DualEncoderModel]


@pytest.fixture
def drawing() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


def test_groups_cover_each_parameter_once_in_order(make_model: MakeModel) -> None:
    model = make_model(vision={"pooling": "attention"}, contrastive={"loss": "sigmoid"})
    partition = Partition.of(model)
    assert [name.split(".")[0] for name in partition][-2:] == ["projections", "temperature"]
    assert partition["temperature"] == ("logit_scale", "logit_bias")
    assert "vision_pooling.query" in partition["projections"]
    assert partition.select("vision") == ("vision.embeddings", "vision.layers.0", "vision.layers.1", "vision.final")


def test_a_fixed_temperature_is_no_parameter(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(temperature={"start": 0.05, "learn": False})
    assert "temperature" not in Partition.of(model)
    assert model(**batch).logit_scale.item() == pytest.approx(20)


@pytest.mark.parametrize("vision", ["cls", "avg", "max", "concat", "attention"])
@pytest.mark.parametrize("text", ["eot", "mean", "max", "last_token", "attention"])
@pytest.mark.slow
def test_every_parameter_of_every_pooling_receives_a_gradient(
    make_model: MakeModel, batch: Batch, vision: str, text: str
) -> None:
    model = make_model(vision={"pooling": vision}, text={"pooling": text})
    model(**batch, return_loss=True).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["eot", "mean", "max", "attention"])
@pytest.mark.slow
def test_padding_changes_no_text(make_model: MakeModel, batch: Batch, attention: str, pooling: str) -> None:
    model = make_model(text={"pooling": pooling, "attention": attention})
    both = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).text_embeds
    alone = model(input_ids=batch["input_ids"][:1, :4]).text_embeds
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)


def test_eot_is_found_without_a_mask_and_where_padding_is_the_same_token(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    alone = model(input_ids=batch["input_ids"][:1, :4]).text_embeds
    padded = torch.cat([batch["input_ids"][:1, :4], torch.ones(1, 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(input_ids=padded).text_embeds, alone, atol=1e-5, rtol=1e-5)


def test_output_is_clip_s(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    output = model(**batch, return_loss=True)
    torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(output.logits_per_image, output.image_embeds @ output.text_embeds.T / 0.07)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    expected = ClipLoss()(output.image_embeds, output.text_embeds, output.logit_scale)
    torch.testing.assert_close(output.loss, expected)
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), output.image_embeds)


def test_equal_captions_and_images_are_no_negatives(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    with torch.no_grad():
        model.logit_scale.zero_()
    batch["input_ids"][2], batch["attention_mask"][2] = batch["input_ids"][0], batch["attention_mask"][0]
    model.config.same_caption = "negative"
    with_negatives = model(**batch, return_loss=True).loss
    model.config.same_caption = "ignore"
    same_caption = model(**batch, return_loss=True).loss
    same_image = model(**batch, image_index=torch.tensor([4, 4, 4]), return_loss=True).loss
    assert with_negatives > same_caption > same_image == 0


def test_the_temperature_never_multiplies_with_more_than_100(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    with torch.no_grad():
        model.logit_scale.fill_(1000.0)
    output = model(**batch, return_loss=True)
    assert output.logit_scale.item() == pytest.approx(100)
    assert torch.isfinite(output.loss)
    model.clamp_temperature()
    assert model.logit_scale.item() == pytest.approx(math.log(100))
    model(**batch, return_loss=True).loss.backward()
    assert model.logit_scale.grad.item() != 0


def test_bad_calls(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="needs pixel_values, input_ids or both"):
        make_model()()
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        DualEncoderConfig(loss="hinge")
    for sizes in ([64, 32, 512], [64], [0, 512], [64, 1024]):
        with pytest.raises(ValueError, match="sizes ascend, and the last is embedding_dim, 512"):
            DualEncoderConfig(matryoshka=sizes)


def test_stock_pipelines_serve_what_was_saved(
    make_model: MakeModel,
    processor: DualEncoderProcessor,
    drawing: Image.Image,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    names = ["grinning face", "a dog", "red heart"]
    output = model(**processor(images=drawing, text=names))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    inputs = again(images=drawing, text=names)
    torch.testing.assert_close(loaded(**inputs).logits_per_image, output.logits_per_image)  # kernels round by address

    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.ERROR, logger="transformers"):
        classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
        scores = {entry["label"]: entry["score"] for entry in classify(drawing, names, hypothesis_template="{}")}
        extract = pipeline("image-feature-extraction", model=str(tmp_path))
    assert caplog.records == []
    assert [scores[name] for name in names] == pytest.approx(output.logits_per_image[0].softmax(dim=0).tolist())
    assert extract(drawing)[0] == pytest.approx(output.image_embeds[0].tolist(), rel=1e-5, abs=1e-6)
    assert extract(drawing, pool=True) == extract(drawing)


def test_weights_of_clip_give_clip_s_embeddings(batch: Batch) -> None:
    """An existing CLIP's towers and projections can be used: the same numbers come out."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "vocab_size": 400, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 2}
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    ).eval()
    config = DualEncoderConfig(
        clip.config.vision_config,
        clip.config.text_config,
        vision_pooling="pooler",
        text_pooling="eot",
        eot_token_id=1,
        embedding_dim=16,
    )
    model = DualEncoderModel.from_encoders(config, vision=clip.vision_model, text=clip.text_model).eval()
    model.vision_projection.load_state_dict(clip.visual_projection.state_dict())
    model.text_projection.load_state_dict(clip.text_projection.state_dict())
    model.logit_scale.data.fill_(clip.logit_scale.item())
    ours, theirs = model(**batch), clip(**batch)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, atol=1e-5, rtol=1e-5)
