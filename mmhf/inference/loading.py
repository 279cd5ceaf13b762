"""Load a trained model and its processor for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from mmhf.conventions import Processor
from mmhf.damage import is_model_file, refuse_damage
from mmhf.errors import InputError
from mmhf.files import CONFIG_FILE
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.family import families, register_families
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.recipe.prompt_template import PromptTemplate


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


def public_name(reference: str) -> str:
    """What a page or a server calls a model: as the user named it, without the folders of this machine.

    `releases/plants@v1.0` and `org/plants@v1.0` are kept; `/home/me/releases/plants@v1.0`, `../plants/v1.0` and
    `~/plants` are `plants@v1.0`, `v1.0` and `plants`.
    """
    path = Path(reference)
    is_elsewhere = path.is_absolute() or not {"..", "~"}.isdisjoint(path.parts)
    return path.expanduser().resolve().name if is_elsewhere else reference


def load_model(
    model_dir: str | Path,
    *,
    task: str | None = None,
    needs: Literal["predictor", "embedder", "graphs"] | None = None,
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, Processor]:
    """Load the model of a run or release folder and its processor, in eval mode, in the dtype it was saved in.

    Parts that the folder only refers to are fetched.

    Args:
        model_dir (`str` or `Path`): The folder.
        task (`str`, *optional*): `task` of the recipes whose models are expected; absent = any.
        needs (`str`, *optional*): What the model's family must have, to predict tables, to embed or to
            be exported; absent = nothing.
        device (`torch.device`, *optional*): Absent = the accelerator of this machine, or the CPU.

    Raises:
        InputError: The folder is absent, holds another kind of model, or its files are damaged or incomplete.
    """
    path = Path(model_dir)
    wanted = {
        model_type: family
        for model_type, family in families().items()
        if task in (None, family.task) and (needs is None or vars(family)[needs] is not None)
    }
    model_type = model_type_of(path)
    if model_type not in wanted:
        raise InputError(f"{path}: a {model_type} model; expected {' or '.join(wanted)}")
    family = wanted[model_type]
    processor_class = AutoImageProcessor if family.processor is None else family.load("processor")
    return load_with(path, family.load("model"), processor_class, device=device)


def model_type_of(path: Path) -> str:
    """The `model_type` of a model folder.

    Raises:
        InputError: The folder is absent, holds no model, or its configuration cannot be read.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such model folder")
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"{path}: no model in it, config.json is missing")
    register_families()
    try:
        return str(AutoConfig.from_pretrained(path, local_files_only=True).model_type)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error


def load_with(
    path: Path, model_class: Any, processor_class: Any, *, device: torch.device | None = None
) -> tuple[PreTrainedModel, Processor]:
    """Load a folder with given classes, in eval mode.

    Raises:
        InputError: A file is damaged or incomplete.
    """
    refuse_damage(path, is_model_file)
    try:
        model, loading = model_class.from_pretrained(path, output_loading_info=True, local_files_only=True)
        processor = processor_class.from_pretrained(path, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, error) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(f"{path}: the weights lack {len(missing)} tensors, such as {missing[0]}; restore the file")
    return model.to(device or choose_device()).eval(), processor


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{path}: the model does not load ({reason}); restore its files")


def takes_text(model: PreTrainedModel) -> bool:
    """Whether the model classifies pairs of an image and a text, and not images alone."""
    return "text" in model.input_modalities


def columns_of(model: PreTrainedModel) -> ColumnFeatures | PromptTemplate | None:
    """The columns of a table that the model reads beside image and text; None where it reads none."""
    config: Any = model.config
    if isinstance(config, PrefixCaptionerConfig):
        return config.prompt_of_rows()
    if not isinstance(config, FusionConfig) or config.columns is None or config.mask == "columns":
        return None
    return ColumnFeatures.from_dict(config.columns)
