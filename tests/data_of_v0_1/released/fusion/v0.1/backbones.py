"""From mmhf.models.backbones of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import difflib
import timm
import torch
from .encoders import fresh_encoder
from .errors import InputError, UnreachableError
from .pypi_weights import PYPI_BACKBONES, pypi_encoder
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from pathlib import Path
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from typing import Any

_TIMM, _PYPI = "timm/", "pypi/"


_WAY_OUT = "check the name and the network, or give a local folder or pypi/NAME"


def load_encoder(
    name: str, config: PreTrainedConfig, *, pretrained: bool, auto_class: Any = AutoModel
) -> PreTrainedModel:
    """Build a backbone in fp32, with its pretrained weights or with fresh ones.

    Args:
        name (`str`): The backbone as a recipe names it.
        config (`PreTrainedConfig`): As `load_encoder_config` found it.
        pretrained (`bool`): Whether to fetch its weights.
        auto_class (`type`): What brings pretrained weights from the Hub or a folder, such as `AutoModelForCausalLM`.

    Raises:
        `InputError`: there are no pretrained weights.
        `UnreachableError`: they cannot be fetched now.
    """
    if not pretrained:
        return fresh_encoder(config)
    if name.startswith(_PYPI):
        return pypi_encoder(_pypi_name(name), config)
    repo, revision = _split_revision(name)
    if name.startswith(_TIMM):
        repo, revision = _timm_repo(name), None
    try:
        return auto_class.from_pretrained(repo, revision=revision, config=config, dtype=torch.float32)
    except OSError as error:
        raise _not_found(name, "weights", error) from error


def _timm_repo(name: str) -> str:
    if "." in name:
        return name
    preprocessing = timm.get_pretrained_cfg(name.removeprefix(_TIMM))
    return f"{name}.{preprocessing.tag}" if preprocessing is not None else name


def _pypi_name(name: str) -> str:
    short = name.removeprefix(_PYPI)
    if short not in PYPI_BACKBONES:
        near = difflib.get_close_matches(short, PYPI_BACKBONES, n=1, cutoff=0.3) or list(PYPI_BACKBONES)
        raise InputError(f"backbone {name}: unknown, did you mean pypi/{near[0]}?")
    return short


def _split_revision(name: str) -> tuple[str, str | None]:
    if Path(name).is_dir():
        return name, None
    repo, _, revision = name.partition("@")
    return repo, revision or None


def _not_found(name: str, what: str, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    message = f"backbone {name}: no {what} found ({reason}); {_WAY_OUT}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (LocalEntryNotFoundError, GatedRepoError)):
            return UnreachableError(message)
        cause = cause.__cause__ or cause.__context__
    return InputError(message)
