from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor

from mmhf.models.captioner import CaptionerProcessor
from mmhf.models.captioner.building import build_captioner_processor, set_prompt
from mmhf.models.tokenizers import train_caption_tokenizer
from mmhf.recipe.caption_data_sections import CaptionTableSection
from mmhf.recipe.captioner_recipe import CaptionerModelSection

_PROCESSOR = CaptionerProcessor(CLIPImageProcessor(), train_caption_tokenizer(["a dog runs"], 300), max_length=24)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_captions_of_any_script_end_and_are_padded_on_the_right(captions: list[str]) -> None:
    encoded = _PROCESSOR(text=captions)
    for ids, mask, caption in zip(encoded["input_ids"], encoded["attention_mask"], captions, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        whole = _PROCESSOR.tokenizer(caption)["input_ids"]
        assert ids[:length].tolist() == [*whole, 0][:24]
        assert (ids[length:] == _PROCESSOR.tokenizer.pad_token_id).all()
    assert _PROCESSOR.count_tokens(captions) == [len(_PROCESSOR.tokenizer(text)["input_ids"]) + 1 for text in captions]


def test_a_caption_that_is_cut_does_not_learn_to_end_there(processor: CaptionerProcessor) -> None:
    ids = processor(text=["a red bird sits on a branch " * 5])["input_ids"]
    assert ids.shape == (1, 16) and 0 not in ids


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Zs", "Cc"]), max_size=12), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_behind_a_word_captions_begin_with_a_space_that_is_not_read_back(captions: list[str]) -> None:
    spaced = CaptionerProcessor(_PROCESSOR.image_processor, _PROCESSOR.tokenizer, max_length=99, leading_space=True)
    whole = [[*_PROCESSOR.tokenizer(f" {text}")["input_ids"], 0] for text in captions]
    encoded = spaced(text=captions)
    assert [ids[mask == 1].tolist() for ids, mask in zip(*encoded.values(), strict=True)] == whole
    assert spaced.count_tokens(captions) == [len(ids) for ids in whole]
    assert spaced.captions(encoded["input_ids"]) == [text.strip() for text in captions]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, False),
        ({"prompt": "a picture of"}, True),
        ({"prompt": "a picture of "}, False),
        ({"prompt": "{kind}:"}, True),
        ({"neighbours": {}}, True),
        ({"neighbours": {"after": "\n"}}, False),
    ],
)
def test_captions_begin_with_a_space_behind_what_does_not_end_in_one(
    processor: CaptionerProcessor, model: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    made = copy.copy(processor)
    set_prompt(made, CaptionerModelSection.model_validate(model))
    made.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).leading_space is expected


def test_a_tokenizer_made_from_captions_knows_them_as_they_are_written() -> None:
    section = CaptionerModelSection.model_validate(
        {
            "vision": {"backbone": "timm/test_vit", "pretrained": False},
            "language": {"pretrained": False, "tokenizer": {"vocab_size": 400}},
            "prompt": "a picture of",
        }
    )
    data = CaptionTableSection.model_validate({"source": "table", "path": "x", "image_size": 32, "max_length": 8})
    made = build_captioner_processor(section, data, ["elephant"] * 9)
    assert made.count_tokens(["elephant"]) == [2], "a word and its end"


def test_images_and_captions_must_pair_up(processor: CaptionerProcessor) -> None:
    image = Image.new("RGB", (40, 20))
    assert processor(images=[image, image], text=["a", "b"])["pixel_values"].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="2 images for 1 captions"):
        processor(images=[image, image], text=["a"])
    with pytest.raises(ValueError, match="needs images, text or both"):
        processor()


def test_saved_and_loaded_it_gives_the_same_tensors(processor: CaptionerProcessor, tmp_path: Path) -> None:
    image = Image.effect_noise((50, 40), 100).convert("RGB")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, CaptionerProcessor) and loaded.max_length == 16
    first, second = (each(images=[image], text=["a dog"]) for each in (processor, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)
