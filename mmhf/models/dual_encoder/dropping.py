"""Patches and layers that are left out at random while an image tower trains. A saved model has nothing of it."""

from __future__ import annotations

import timm
import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

from mmhf.errors import InputError
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderModel
from mmhf.recipe.dual_encoder_recipe import VisionTowerSection


def drop_at_random(model: DualEncoderModel, section: VisionTowerSection) -> DualEncoderModel:
    """Have a model leave out what a recipe says, in training mode only.

    Args:
        model ([`DualEncoderModel`]): It is changed, and given back. Parameters and their names stay as they are.
        section ([`VisionTowerSection`]): `patch_dropout` and `stochastic_depth`.

    Raises:
        `InputError`: the image tower can do without neither patches nor layers.
    """
    if section.patch_dropout:
        _drop_patches(model, section)
    if section.stochastic_depth:
        _drop_layers(model, section)
    return model


def _drop_patches(model: DualEncoderModel, section: VisionTowerSection) -> None:
    """After position embeddings are added (Li et al., "FLIP", https://arxiv.org/abs/2212.00794); as of open_clip.

    The module has no parameters and stands beside the patch embedding: where that is frozen, it drops nothing.
    """
    encoder: nn.Module = model.vision
    dropout = PatchDropout(section.patch_dropout, num_prefix_tokens=model.vision_output.prefix_tokens)
    if isinstance(encoder, ViTModel):
        encoder.embeddings.register_module("dropout", nn.Sequential(encoder.embeddings.dropout, dropout))
    elif isinstance(encoder, TimmWrapperModel) and isinstance(encoder.timm_model, VisionTransformer):
        encoder.timm_model.patch_drop = dropout
    else:
        raise InputError(
            f"model.vision.patch_dropout: {section.backbone} cannot do without patches; it takes a vision transformer "
            "of timm, such as timm/vit_base_patch16_224, or a tower from scratch"
        )


def _drop_layers(model: DualEncoderModel, section: VisionTowerSection) -> None:
    """What timm itself would have built (Huang et al., "Stochastic Depth", https://arxiv.org/abs/1603.09382)."""
    encoder: nn.Module = model.vision
    layers: dict[str, nn.Module] = {}
    if isinstance(encoder, TimmWrapperModel):
        config = encoder.config
        values = {**(config.model_args or {}), "drop_path_rate": section.stochastic_depth}
        try:
            with torch.device("meta"):
                deep = timm.create_model(config.architecture, num_classes=0, **values)
        except TypeError as error:  # its class has no such argument
            raise _no_layers(section) from error
        own = dict(encoder.timm_model.named_modules())
        layers = {name: each for name, each in deep.named_modules() if isinstance(each, DropPath) and name in own}
    if not layers:
        raise _no_layers(section)
    for name, layer in layers.items():
        encoder.get_submodule("timm_model").set_submodule(name, layer)


def _no_layers(section: VisionTowerSection) -> InputError:
    what = section.backbone or "a tower from scratch"
    return InputError(
        f"model.vision.stochastic_depth: {what} cannot do without layers; it takes a backbone of timm with residual "
        "blocks, such as timm/vit_base_patch16_224 (pretrained: false starts it from scratch)"
    )
