"""Tiny random encoders and classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, PreTrainedConfig

from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.sample_data import read_sample


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return read_sample("train")["caption"].to_pylist()


@pytest.fixture(scope="session")
def tiny_timm() -> Callable[..., PreTrainedConfig]:
    def make(architecture: str = "test_efficientnet", size: int = 32) -> PreTrainedConfig:
        half = [0.5, 0.5, 0.5]
        return timm_config(
            architecture, {"input_size": [3, size, size], "mean": half, "std": half, "interpolation": "bicubic"}
        )

    return make


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., BertConfig]:
    def make(**changes) -> BertConfig:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
        return BertConfig(**{**sizes, "vocab_size": 99, "max_position_embeddings": 32, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_config(tiny_timm, tiny_bert) -> Callable[..., FusionConfig]:
    def make(**changes) -> FusionConfig:
        values = {
            "vision_config": tiny_timm(),
            "text_config": tiny_bert(),
            "embedding_dim": 16,
            "hidden_dims": [8],
            "dropout": 0.0,
            "id2label": {0: "real", 1: "fake", 2: "satire"},
            "label2id": {"real": 0, "fake": 1, "satire": 2},
        }
        return FusionConfig(**{**values, **changes})

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = 0
    return {
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 99, (3, 7), generator=generator),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2]),
    }


@pytest.fixture(scope="session")
def session_model(tiny_config) -> FusionForImageTextClassification:
    torch.manual_seed(0)
    return FusionForImageTextClassification(tiny_config()).eval()


@pytest.fixture
def model(session_model) -> FusionForImageTextClassification:
    return copy.deepcopy(session_model)
