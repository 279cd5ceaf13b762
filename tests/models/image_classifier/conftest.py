"""A tiny image classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

LABELS = {0: "rust", 1: "blight", 2: "healthy"}


@pytest.fixture(scope="session")
def classifier_config(tiny_timm) -> Callable[..., BackboneForImageClassificationConfig]:
    def make(**changes) -> BackboneForImageClassificationConfig:
        values = {
            "vision_config": tiny_timm(),
            "head_hidden_dim": 16,
            "initializer_range": 0.3,
            "id2label": LABELS,
            "label2id": {name: index for index, name in LABELS.items()},
        }
        return BackboneForImageClassificationConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def classifier(classifier_config) -> BackboneForImageClassification:
    """In eval mode; tests do not change it."""
    torch.manual_seed(0)
    return BackboneForImageClassification(classifier_config()).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
