"""Tiny captioners: a CLIP tower of 2 layers and a Qwen3 of 2 layers whose tokenizer is made from captions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Qwen3Config, Qwen3ForCausalLM

from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.building import build_captioner_model, generation_config
from mmhf.models.tokenizers import train_caption_tokenizer
from mmhf.recipe.captioner_recipe import CaptionerModelSection, GenerationSection

CAPTIONS = [
    "a dog runs",
    "a red bird sits on a branch",
    "two dogs and a bird",
    "smiling face with open mouth",
    "木の葉 🍁",
]
SIDE = 32


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_caption_tokenizer(CAPTIONS, 320)


@pytest.fixture(scope="session")
def processor(tokenizer: Any) -> CaptionerProcessor:
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=square, do_center_crop=False, crop_size=square)
    return CaptionerProcessor(images, tokenizer, max_length=16)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, str]:
    """Folders of a whole CLIP and of a language model with its tokenizer, with random weights."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPConfig(
        vision_config={**tower, "image_size": SIDE, "patch_size": 16},
        text_config={**tower, "vocab_size": 99},
        projection_dim=24,
    )
    CLIPModel(clip).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(folder / "clip")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
    # Larger weights than usual, so that what is generated depends on the image.
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **ends, initializer_range=0.3)).save_pretrained(folder / "qwen")
    tokenizer.save_pretrained(folder / "qwen")
    return {"vision": str(folder / "clip"), "language": str(folder / "qwen")}


@pytest.fixture(scope="session")
def section(backbones: dict[str, str]) -> Callable[..., CaptionerModelSection]:
    """A section `model` with the tiny backbones; keywords change it."""

    def make(**changes: Any) -> CaptionerModelSection:
        values: dict[str, Any] = {
            "vision": {"backbone": backbones["vision"]},
            "language": {"backbone": backbones["language"]},
            "projector": {"prefix_length": 3, "hidden_dims": [16]},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        return CaptionerModelSection.model_validate(values)

    return make


@pytest.fixture(scope="session")
def _model(
    section: Callable[..., CaptionerModelSection], processor: CaptionerProcessor
) -> PrefixCaptionerForConditionalGeneration:
    torch.manual_seed(0)
    model = build_captioner_model(section(), processor=processor, image_size=SIDE)
    torch.nn.init.normal_(model.projector.layers[-1].weight, std=0.5)
    model.generation_config = generation_config(GenerationSection(max_new_tokens=8), processor)
    return model.eval()


@pytest.fixture
def model(_model: PrefixCaptionerForConditionalGeneration) -> PrefixCaptionerForConditionalGeneration:
    """A captioner with tiny pretrained encoders, in eval mode."""
    return copy.deepcopy(_model)


@pytest.fixture
def batch(processor: CaptionerProcessor) -> dict[str, torch.Tensor]:
    """Four random images, each with a caption of another length."""
    torch.manual_seed(1)
    encoded = dict(processor(text=CAPTIONS[:4]))
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    return {"pixel_values": torch.randn(4, 3, SIDE, SIDE), **encoded, "labels": labels}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"
