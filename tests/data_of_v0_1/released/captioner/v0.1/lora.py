"""From mmhf.models.captioner.lora of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

from .errors import InputError
from torch import nn
from typing import Any

_MARK = ".lora_"


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return _MARK in name


def add_lora(language: nn.Module, values: dict[str, Any]) -> None:
    """Put adapters into a language model; at first they change nothing.

    Args:
        language (`nn.Module`): A causal language model of transformers; changed in place.
        values (`dict`): `rank`, `alpha`, `dropout` and `target_modules`.

    Raises:
        `InputError`: peft is not installed, or no layer has one of the names.
    """
    try:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        finally:
            pass
    except ImportError as error:
        raise InputError("model.lora: peft is not installed: pip install 'mmhf[lora]'") from error
    targets = values["target_modules"]
    config = LoraConfig(
        r=values["rank"],
        lora_alpha=values["alpha"],
        lora_dropout=values["dropout"],
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, language)
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {targets}: {str(error).partition('. ')[0]}") from error
