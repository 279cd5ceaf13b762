"""Load a trained model and its processor for inference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel, DualEncoderProcessor
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification, FusionProcessor
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

# Model type → model and processor.
_CLASSIFIERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    FusionConfig.model_type: (FusionForImageTextClassification, FusionProcessor),
    BackboneForImageClassificationConfig.model_type: (BackboneForImageClassification, AutoImageProcessor),
}
_CAPTIONERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    PrefixCaptionerConfig.model_type: (PrefixCaptionerForConditionalGeneration, CaptionerProcessor),
}
_DUAL_ENCODERS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    DualEncoderConfig.model_type: (DualEncoderModel, DualEncoderProcessor),
}


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the accelerator of this machine, or the CPU.

    Raises:
        InputError: There is no such device.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r}: not on this machine ({str(error).splitlines()[0]})") from error
    return device


def load_classifier(model_dir: str | Path, *, device: torch.device | None = None) -> tuple[PreTrainedModel, Any]:
    """Load the classifier of a run or release folder and its processor, in eval mode, in the dtype it was saved in.

    Raises:
        InputError: The folder is absent, holds another kind of model, or its files are damaged or incomplete.
    """
    return _load(Path(model_dir), _CLASSIFIERS, device)


def load_captioner(model_dir: str | Path, *, device: torch.device | None = None) -> tuple[PreTrainedModel, Any]:
    """As `load_classifier`, for a captioner; parts that the folder refers to are fetched."""
    return _load(Path(model_dir), _CAPTIONERS, device)


def load_dual_encoder_folder(
    model_dir: str | Path, *, device: torch.device | None = None
) -> tuple[PreTrainedModel, Any]:
    """As `load_classifier`, for a dual encoder."""
    return _load(Path(model_dir), _DUAL_ENCODERS, device)


def load_predictable(model_dir: str | Path, *, device: torch.device | None = None) -> tuple[PreTrainedModel, Any]:
    """As `load_classifier`, for any model that predicts a table."""
    return _load(Path(model_dir), {**_CLASSIFIERS, **_CAPTIONERS}, device)


def load_servable(model_dir: str | Path, *, device: torch.device | None = None) -> tuple[PreTrainedModel, Any]:
    """As `load_classifier`, for a model of any family."""
    return _load(Path(model_dir), {**_CLASSIFIERS, **_CAPTIONERS, **_DUAL_ENCODERS}, device)


def _load(
    path: Path, families: Mapping[str, tuple[type[PreTrainedModel], Any]], device: torch.device | None
) -> tuple[PreTrainedModel, Any]:
    if not path.is_dir():
        raise InputError(f"{path}: no such model folder")
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"{path}: no model in it, config.json is missing")
    try:
        model_class, processor_class = families[_model_type(path, families)]
        loaded: Any = model_class.from_pretrained(path, output_loading_info=True, local_files_only=True)
        processor = processor_class.from_pretrained(path, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: the model does not load ({reason}); restore its files") from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(f"{path}: the weights lack {len(missing)} tensors, such as {missing[0]}; restore the file")
    return model.to(device or choose_device()).eval(), processor


def takes_text(model: PreTrainedModel) -> bool:
    """Whether the model classifies pairs of an image and a text, and not images alone."""
    return "text" in model.input_modalities


def _model_type(path: Path, families: Collection[str]) -> str:
    model_type = AutoConfig.from_pretrained(path, local_files_only=True).model_type
    if model_type not in families:
        raise InputError(f"{path}: a {model_type} model; expected {' or '.join(families)}")
    return model_type
