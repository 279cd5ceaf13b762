"""transformers' contract for processors: whose word counts when several say something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_processors import square_images, word_tokenizer

from tests.models.contract.conftest import PROCESSORS, SIDE, picture

EVERY = pytest.mark.parametrize("family", PROCESSORS)


def made(family: str, tokenizer: Any = None, images: Any = None, **options: Any) -> Any:
    return PROCESSORS[family](images or square_images(SIDE), tokenizer or word_tokenizer(), **options)


def call(processor: Any, **options: Any) -> Any:
    return processor(images=picture(), text="a red frog", **options)


@EVERY
def test_defaults_pad_to_the_longest_and_cut_at_the_family_s_length(family: str):
    processor = made(family)
    encoding = processor(images=[picture()] * 2, text=["a red frog " * 50, "a"])
    assert set(encoding) == set(processor.model_input_names)
    longest = 77 if family == "dual encoder" else 128
    assert encoding["input_ids"].shape == encoding["attention_mask"].shape == (2, longest)
    assert encoding["attention_mask"][1].sum() < 4


@EVERY
def test_what_the_parts_were_given_is_kept(family: str):
    processor = made(
        family,
        word_tokenizer(max_length=31, padding="max_length"),
        square_images(SIDE, do_rescale=True, rescale_factor=-1.0, do_normalize=False),
    )
    encoding = call(processor)
    assert encoding["input_ids"].shape[-1] == 31
    assert encoding["pixel_values"].mean() < 0


@EVERY
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("at", ["call", "made"])
def test_arguments_override_the_parts_when_called_and_when_made(family: str, nested: bool, at: str, tmp_path: Path):
    text = {"max_length": 21, "padding": "max_length"}
    images = {"do_rescale": True, "rescale_factor": -1.0, "do_normalize": False, "size": {"height": 16, "width": 16}}
    options: dict[str, Any] = {"text_kwargs": text, "images_kwargs": images} if nested else {**text, **images}
    parts = {"tokenizer": word_tokenizer(max_length=31), "images": square_images(SIDE, do_rescale=False)}
    if at == "call":
        encodings = [call(made(family, **parts), **options)]
    else:
        processor = made(family, **parts, **options)
        processor.save_pretrained(tmp_path)
        encodings = [call(processor), call(PROCESSORS[family].from_pretrained(tmp_path))]
        assert call(processor, max_length=19)["input_ids"].shape[-1] == 19, "a call's own word counts more"
    for encoding in encodings:
        assert encoding["input_ids"].shape[-1] == 21
        assert encoding["pixel_values"].shape[-2:] == (16, 16)
        assert encoding["pixel_values"].mean() < 0


@EVERY
def test_a_recipe_s_length_counts_more_than_the_tokenizer_s(family: str):
    processor = made(family, word_tokenizer(max_length=31), max_length=7)
    assert call(processor, padding="max_length")["input_ids"].shape[-1] == 7


@EVERY
def test_the_same_argument_given_twice_is_refused(family: str):
    twice = {"padding": "max_length", "text_kwargs": {"padding": "longest"}}
    with pytest.raises(ValueError, match="passed two times"):
        call(made(family), **twice)
    with pytest.raises(ValueError, match="passed two times"):
        made(family, **twice)


def test_captions_are_padded_on_the_right_unless_a_call_says_otherwise():
    processor = made("captioner", word_tokenizer(padding_side="left"))
    right = processor(text=["a red frog", "a"])
    assert right["input_ids"][1].tolist() == [10, 3, 0, 0] and right["attention_mask"][1].tolist() == [1, 1, 0, 0]
    left = processor(text=["a red frog", "a"], padding_side="left")
    assert left["input_ids"][1].tolist() == [0, 0, 10, 3] and left["attention_mask"][1].tolist() == [0, 0, 1, 1]


def test_masks_and_missing_parts_stay_the_fusion_processor_s_own():
    encoding = made("fusion")(images=[picture(), None], text=["a", None], padding="max_length", max_length=9)
    assert encoding["input_ids"].shape == (2, 9)
    assert torch.equal(encoding["image_mask"], torch.tensor([1, 0]))
