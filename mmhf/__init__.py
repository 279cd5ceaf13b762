"""mmhf: train, evaluate, release and serve image-text models on Hugging Face Trainer, from one recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmhf import _light_imports, _torchvision
from mmhf._version import __version__ as __version__

_torchvision.install()
_light_imports.install()

# Resolved on first use, so that `import mmhf` loads neither torch nor transformers. The families' configs, models and
# processors come from their own records.
_EXPORTS = {
    "MMTrainer": "mmhf.training.trainer",
    "Run": "mmhf.verbs.run",
    "evaluate": "mmhf.verbs.evaluate",
    "init": "mmhf.verbs.init",
    "plan": "mmhf.verbs.plan",
    "predict": "mmhf.verbs.predict",
    "train": "mmhf.verbs.train",
    "StageCallback": "mmhf.training.boundary",
    "StagePlan": "mmhf.training.stages",
    "Stage": "mmhf.training.stages",
    "load_dataset": "mmhf.verbs.load_dataset",
    "load_recipe": "mmhf.recipe",
    "pipeline": "mmhf.verbs.pipeline",
}

if TYPE_CHECKING:
    from mmhf.models.captioner import CaptionerProcessor as CaptionerProcessor
    from mmhf.models.captioner import PrefixCaptionerConfig as PrefixCaptionerConfig
    from mmhf.models.captioner import (
        PrefixCaptionerForConditionalGeneration as PrefixCaptionerForConditionalGeneration,
    )
    from mmhf.models.dual_encoder import DualEncoderConfig as DualEncoderConfig
    from mmhf.models.dual_encoder import DualEncoderModel as DualEncoderModel
    from mmhf.models.dual_encoder import DualEncoderProcessor as DualEncoderProcessor
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
    from mmhf.verbs.evaluate import evaluate as evaluate
    from mmhf.verbs.init import init as init
    from mmhf.verbs.load_dataset import load_dataset as load_dataset
    from mmhf.verbs.pipeline import pipeline as pipeline
    from mmhf.verbs.plan import plan as plan
    from mmhf.verbs.predict import predict as predict
    from mmhf.verbs.run import Run as Run
    from mmhf.verbs.train import train as train


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name == "__all__":
        return __dir__()
    # Only classes: import machinery asks for submodules by this way, too.
    if name[:1].isupper() and name in (owners := _families_by_class()):
        return owners[name].attribute(name)
    raise AttributeError(f"module 'mmhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_EXPORTS, *_families_by_class()])


def _families_by_class() -> dict[str, Any]:
    families = importlib.import_module("mmhf.models.family").families()
    return {name: family for family in families.values() for name in family.classes}
