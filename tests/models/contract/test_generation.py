"""A captioner generates as its language model does, and has that model's embeddings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_processors import square_images, word_tokenizer
from transformers import GenerationConfig

from mmhf.models.captioner import CaptionerProcessor
from tests.models.contract.conftest import ENCODERS, SIDE, inputs_of, picture


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 5},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"eos_token_id": None},
        {"cache_implementation": "static"},
    ],
)
@pytest.mark.slow
def test_generation_is_that_of_the_bare_language_model(make_model, encoder: str, options: dict[str, Any]):
    model = make_model("captioner", encoder)
    pixel_values = inputs_of("captioner")["pixel_values"]
    prefix = model.prefix_embeds(model.image_features(pixel_values))
    torch.manual_seed(0)
    expected = model.language.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
        max_new_tokens=6,
        **options,
    )
    torch.manual_seed(0)
    assert torch.equal(model.generate(pixel_values, max_new_tokens=6, **options), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_prompt_lookup_changes_no_token(make_model, seed: int):
    model = make_model("captioner")
    image_features = torch.randn(1, model.vision_output.width, generator=torch.Generator().manual_seed(seed))
    usual = {"image_features": image_features, "max_new_tokens": 14, "eos_token_id": None}
    assert torch.equal(model.generate(**usual, prompt_lookup_num_tokens=3), model.generate(**usual))


def test_what_transformers_does_for_token_ids_alone_is_refused(make_model):
    """Each of them would write another caption than the model does."""
    model = make_model("captioner")
    inputs: dict[str, Any] = {"pixel_values": inputs_of("captioner", 1)["pixel_values"]}
    begun = torch.tensor([[5, 6, 5, 6, 5]])
    for options in (
        {"assistant_model": copy.deepcopy(model.language)},
        {"assistant_early_exit": 1},
        {"prompt_lookup_num_tokens": 3, "input_ids": begun},
        {"generation_config": GenerationConfig(prompt_lookup_num_tokens=3), "input_ids": begun},
    ):
        with pytest.raises(ValueError, match=r"^(assistant_model|assistant_early_exit|prompt_lookup_num_tokens): "):
            model.generate(**inputs, **options)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.slow
def test_a_captioner_partly_on_disk_writes_the_same(make_model, tmp_path, where: str):
    model = make_model("captioner")
    pixel_values = inputs_of("captioner")["pixel_values"]
    model.save_pretrained(tmp_path / "model")
    places = {"vision": "disk", "projector": where, "language": "disk"}
    loaded = type(model).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")
    assert next(loaded.language.parameters()).is_meta
    expected = model.generate(pixel_values, max_new_tokens=6)
    assert torch.equal(loaded.eval().generate(pixel_values, max_new_tokens=6), expected)
    ids = {"pixel_values": pixel_values, "input_ids": expected}
    torch.testing.assert_close(loaded(**ids).logits, model(**ids).logits)


def test_a_captioner_loads_in_another_dtype(make_model, tmp_path):
    model = make_model("captioner")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    pixel_values = inputs_of("captioner")["pixel_values"].bfloat16()
    assert loaded.generate(pixel_values, max_new_tokens=3).shape[0] == 2
    inputs = {"pixel_values": pixel_values, "input_ids": inputs_of("captioner")["input_ids"]}
    expected = model(**{**inputs, "pixel_values": pixel_values.float()}).logits
    torch.testing.assert_close(loaded(**inputs).logits.float(), expected, atol=0.3, rtol=0.1)
    assert type(model).from_pretrained(tmp_path, dtype="auto").dtype == torch.float32


def test_a_caption_goes_on_from_how_it_begins(make_model):
    """Rows of different lengths, as the processor gives them, are what each would be alone."""
    model = make_model("captioner")
    processor = CaptionerProcessor(square_images(SIDE), word_tokenizer())
    texts = ["a red frog on the lamp", "green"]
    encoding = processor(images=[picture(), picture()], text=texts)
    together = model.generate(**encoding, max_new_tokens=5)
    beginnings = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for row, begun in zip(together.tolist(), beginnings, strict=True):
        longest = max(map(len, beginnings))
        assert row[:longest] == [0] * (longest - len(begun)) + begun
    for index, text in enumerate(texts):
        alone = model.generate(**processor(images=[picture()], text=[text]), max_new_tokens=5)
        count = len(alone[0]) - len(beginnings[index])
        assert together[index, -5:][:count].tolist() == alone[0, len(beginnings[index]) :].tolist()
    ids = torch.tensor([beginnings[0]])
    embeds = model.get_input_embeddings()(ids)
    pixel_values = encoding["pixel_values"][:1]
    from_embeds = model.generate(pixel_values, inputs_embeds=embeds, max_new_tokens=5)
    from_ids = model.generate(pixel_values, input_ids=ids, max_new_tokens=5)
    assert from_ids[0, len(beginnings[0]) :].tolist() == from_embeds[0].tolist()
    both = model.generate(pixel_values, input_ids=ids, inputs_embeds=embeds, max_new_tokens=5)
    assert torch.equal(both, from_ids)


def test_what_a_caption_begins_with_is_the_same_as_feeding_it_step_by_step(make_model):
    model = make_model("captioner")
    pixel_values = inputs_of("captioner", 1)["pixel_values"]
    written = model.generate(pixel_values, max_new_tokens=6, eos_token_id=None)
    resumed = model.generate(pixel_values, input_ids=written[:, :3], max_new_tokens=3, eos_token_id=None)
    assert resumed.tolist() == written.tolist()


def test_the_end_is_the_language_models(make_model):
    model = make_model("captioner")
    assert model.generation_config.eos_token_id == 3 and model.generation_config.pad_token_id == 0


@torch.no_grad()
def test_embeddings_are_the_language_models_and_can_be_resized(make_model):
    model, inputs = make_model("captioner"), inputs_of("captioner")
    before = model(**inputs).logits
    assert model.get_input_embeddings() is model.language.get_input_embeddings()
    assert model.get_output_embeddings() is model.language.get_output_embeddings()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    from_embeds = model(pixel_values=inputs["pixel_values"], inputs_embeds=embeds).logits
    torch.testing.assert_close(from_embeds, before)
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.config.text_config is model.config.get_text_config() and model.vocab_size == 40
    assert model.config.get_text_config().vocab_size == 40 and model.get_input_embeddings().num_embeddings == 40
    after = model(**inputs).logits
    assert after.shape[-1] == 40
    torch.testing.assert_close(after[..., :32], before)
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(**inputs, inputs_embeds=embeds)
