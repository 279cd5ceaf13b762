"""The four families with random weights, at true shapes and at tiny ones."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    PreTrainedModel,
    Qwen2Config,
    ViTConfig,
)

from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.training.captioning import CaptioningTrainer
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.trainer import MMTrainer

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Batch = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of everything: true ones, or tiny ones for a dry run on a CPU."""

    is_dry: bool
    pixels: int
    tokens: int
    caption: int
    vocabulary: int
    bert: Mapping[str, int]
    vit: Mapping[str, int]
    clip_text: Mapping[str, int]
    qwen: Mapping[str, Any]
    efficientnet: str
    resnet: str
    batches: Mapping[str, int]
    steps: int
    cached_pairs: int
    cached_micro_batch: int
    jpegs: int
    epochs: int


TRUE = Sizes(
    is_dry=False, pixels=224, tokens=128, caption=22, vocabulary=30_522,
    bert={"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    vit={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    clip_text={"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
    qwen={
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    efficientnet="efficientnet_b0", resnet="resnet50",
    batches={"fusion": 256, "dual encoder": 512, "captioner": 128, "image classifier": 256},
    steps=15, cached_pairs=4096, cached_micro_batch=512, jpegs=4096, epochs=4,
)  # fmt: skip
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = Sizes(
    is_dry=True, pixels=32, tokens=8, caption=6, vocabulary=120,
    bert={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, vit=NARROW, clip_text=NARROW,
    qwen={**NARROW, "vocab_size": 200, "num_key_value_heads": 1},
    efficientnet="test_efficientnet", resnet="test_resnet",
    batches={"fusion": 4, "dual encoder": 4, "captioner": 4, "image classifier": 4},
    steps=2, cached_pairs=16, cached_micro_batch=4, jpegs=32, epochs=2,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is built at the sizes of a run, and what it trains on.

    Attributes:
        make (`Callable[[Sizes], PreTrainedModel]`): A model without dropout.
        inputs (`Callable[[Sizes, int], Batch]`): So many samples, on the CPU.
        trainer_class (`type[MMTrainer]`): The family's trainer.
        trained (`str` or `list[str]`): What trains in the timed stage.
        head (`list[str]`): What trains in a first stage.
    """

    make: Callable[[Sizes], PreTrainedModel]
    inputs: Callable[[Sizes, int], Batch]
    trainer_class: type[MMTrainer] = MMTrainer
    trained: str | tuple[str, ...] = "all"
    head: tuple[str, ...] = ("head",)


def _timm(architecture: str, sizes: Sizes) -> Any:
    mean, std = HALF
    side = sizes.pixels
    return timm_config(
        architecture, {"input_size": [3, side, side], "mean": mean, "std": std, "interpolation": "bicubic"}
    )


def make_fusion(sizes: Sizes) -> PreTrainedModel:
    text = DistilBertConfig(vocab_size=sizes.vocabulary, dropout=0.0, attention_dropout=0.0, **sizes.bert)
    vision = _timm(sizes.efficientnet, sizes)
    return FusionForImageTextClassification(FusionConfig(vision, text, dropout=0.0, id2label={0: "true", 1: "fake"}))


def make_image_classifier(sizes: Sizes) -> PreTrainedModel:
    labels = {number: f"class {number}" for number in range(38)}
    config = BackboneForImageClassificationConfig(
        _timm(sizes.resnet, sizes), head_hidden_dim=512, head_dropout=(0.0, 0.0), id2label=labels
    )
    return BackboneForImageClassification(config)


def make_dual_encoder(sizes: Sizes) -> PreTrainedModel:
    vision = ViTConfig(image_size=sizes.pixels, patch_size=16, **sizes.vit)
    text = CLIPTextConfig(vocab_size=max(sizes.vocabulary, 100), **sizes.clip_text)
    return DualEncoderModel(DualEncoderConfig(vision, text, text_pooling="last_token"))


def make_captioner(sizes: Sizes) -> PreTrainedModel:
    vision = CLIPVisionConfig(image_size=sizes.pixels, patch_size=16, projection_dim=512, **sizes.vit)
    language = Qwen2Config(pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes.qwen)
    return PrefixCaptionerForConditionalGeneration(PrefixCaptionerConfig(vision, language))


def _pixels(sizes: Sizes, count: int) -> torch.Tensor:
    return torch.randn(count, 3, sizes.pixels, sizes.pixels)


def _texts(length: int, vocabulary: int, count: int) -> Batch:
    tokens = torch.randint(2, vocabulary, (count, length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def fusion_inputs(sizes: Sizes, count: int) -> Batch:
    texts = _texts(sizes.tokens, sizes.vocabulary, count)
    return {"pixel_values": _pixels(sizes, count), **texts, "labels": torch.randint(0, 2, (count,))}


def image_classifier_inputs(sizes: Sizes, count: int) -> Batch:
    return {"pixel_values": _pixels(sizes, count), "labels": torch.randint(0, 38, (count,))}


def dual_encoder_inputs(sizes: Sizes, count: int) -> Batch:
    texts = _texts(min(sizes.tokens, 77), sizes.vocabulary, count)
    return {"pixel_values": _pixels(sizes, count), **texts, "image_index": torch.arange(count)}


def captioner_inputs(sizes: Sizes, count: int) -> Batch:
    """Captions of Flickr30k's lengths: 9 to 22 tokens, and what ends them."""
    texts = _texts(sizes.caption, sizes.qwen["vocab_size"], count)
    lengths = torch.randint(sizes.caption // 2 - 1, sizes.caption + 1, (count,))
    is_padding = torch.arange(sizes.caption) >= lengths[:, None]
    mask = (~is_padding).long()
    labels = texts["input_ids"].masked_fill(is_padding, -100)
    return {
        "pixel_values": _pixels(sizes, count),
        "input_ids": texts["input_ids"],
        "attention_mask": mask,
        "labels": labels,
    }


FAMILIES = {
    "dual encoder": Family(
        make_dual_encoder, dual_encoder_inputs, ContrastiveTrainer, head=("projections", "temperature")
    ),
    "captioner": Family(
        make_captioner, captioner_inputs, CaptioningTrainer, trained=("projector",), head=("projector",)
    ),
    "fusion": Family(make_fusion, fusion_inputs),
    "image classifier": Family(make_image_classifier, image_classifier_inputs),
}
SHAPES = {
    "dual encoder": "ViT-B/16 + 12-layer text tower, all trains",
    "captioner": "CLIP ViT-B/16 + MLP + Qwen2.5-0.5B, projector trains",
    "captioner, language too": "the same, projector and language model train",
    "captioner, cast each step": "as the first, without bf16 copies of frozen weights",
    "fusion": "EfficientNet-B0 + DistilBERT, 128 tokens, all trains",
    "image classifier": "ResNet-50, all trains",
}
