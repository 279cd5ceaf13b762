"""mmhf: train, evaluate, release and serve image-text models on Hugging Face Trainer, from one recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmhf import _torchvision
from mmhf._version import __version__

_torchvision.install()

# Resolved on first use, so that `import mmhf` loads neither torch nor transformers.
_EXPORTS = {
    "BackboneForImageClassification": "mmhf.models.image_classifier",
    "BackboneForImageClassificationConfig": "mmhf.models.image_classifier",
    "CaptionerProcessor": "mmhf.models.captioner",
    "FusionConfig": "mmhf.models.fusion",
    "FusionForImageTextClassification": "mmhf.models.fusion",
    "FusionProcessor": "mmhf.models.fusion",
    "MMTrainer": "mmhf.training.trainer",
    "PrefixCaptionerConfig": "mmhf.models.captioner",
    "PrefixCaptionerForConditionalGeneration": "mmhf.models.captioner",
    "StageCallback": "mmhf.training.boundary",
    "StagePlan": "mmhf.training.stages",
    "Stage": "mmhf.training.stages",
    "load_recipe": "mmhf.recipe",
    "pipeline": "mmhf.inference",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from mmhf.inference import pipeline as pipeline
    from mmhf.models.captioner import CaptionerProcessor as CaptionerProcessor
    from mmhf.models.captioner import PrefixCaptionerConfig as PrefixCaptionerConfig
    from mmhf.models.captioner import (
        PrefixCaptionerForConditionalGeneration as PrefixCaptionerForConditionalGeneration,
    )
    from mmhf.models.fusion import FusionConfig as FusionConfig
    from mmhf.models.fusion import FusionForImageTextClassification as FusionForImageTextClassification
    from mmhf.models.fusion import FusionProcessor as FusionProcessor
    from mmhf.models.image_classifier import BackboneForImageClassification as BackboneForImageClassification
    from mmhf.models.image_classifier import (
        BackboneForImageClassificationConfig as BackboneForImageClassificationConfig,
    )
    from mmhf.recipe import load_recipe as load_recipe
    from mmhf.training.boundary import StageCallback as StageCallback
    from mmhf.training.stages import Stage as Stage
    from mmhf.training.stages import StagePlan as StagePlan
    from mmhf.training.trainer import MMTrainer as MMTrainer


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mmhf' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
