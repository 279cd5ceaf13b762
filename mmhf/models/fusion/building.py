"""From the model section of a recipe to a fusion classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmhf.errors import InputError
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.encoders import describe_text, describe_vision
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification
from mmhf.recipe.schema import FusionModelSection, TextEncoderSection, VisionEncoderSection

# Recipe key → FusionConfig attribute, for what decides the shape or the meaning of the weights.
_FIXED_BY_RELEASE = {
    "vision.backbone": "vision_backbone",
    "vision.pooling": "vision_pooling",
    "text.backbone": "text_backbone",
    "text.pooling": "text_pooling",
    "embedding_dim": "embedding_dim",
    "fusion.strategy": "strategy",
    "fusion.hidden_dims": "hidden_dims",
}


def build_fusion_config(
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    image_size: int | None = None,
) -> FusionConfig:
    """Config of the fusion classifier that a recipe describes; fetches configuration files at most.

    Args:
        section ([`FusionModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`Sequence[float]`, *optional*): Weight of each class in the loss.
        image_size (`int`, *optional*): Side in pixels of the images to come, to refuse what the encoder cannot take.

    Raises:
        `InputError`: a backbone is unknown, its config cannot be fetched, it lacks the pooling, or images of this
            size do not fit it.
    """
    vision, text, fusion = section.vision, section.text, section.fusion
    vision_config = load_encoder_config(vision.backbone, pretrained=vision.pretrained, modality="vision")
    text_config = load_encoder_config(text.backbone, pretrained=text.pretrained, modality="text")
    with _names_section("vision", vision):
        vision_output = describe_vision(vision_config, vision.pooling, image_size=image_size)
    with _names_section("text", text):
        text_output = describe_text(text_config, text.pooling)
    return FusionConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_backbone=vision.backbone,
        text_backbone=text.backbone,
        vision_pooling=vision.pooling,
        text_pooling=text.pooling,
        vision_output=vision_output.to_dict(),
        text_output=text_output.to_dict(),
        embedding_dim=section.embedding_dim,
        strategy=fusion.strategy,
        hidden_dims=fusion.hidden_dims,
        dropout=fusion.dropout,
        activation=fusion.activation,
        normalize=fusion.normalize,
        label_smoothing=label_smoothing,
        class_weights=None if class_weights is None else [float(weight) for weight in class_weights],
        **_labels(label_names),
    )


def build_fusion_model(
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    image_size: int | None = None,
    device: str | None = None,
) -> FusionForImageTextClassification:
    """Fusion classifier of a recipe, with its pretrained encoders and a fresh head.

    Args:
        section ([`FusionModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`Sequence[float]`, *optional*): Weight of each class in the loss.
        image_size (`int`, *optional*): Side in pixels of the images to come.
        device (`str`, *optional*): `"meta"` builds the shapes alone and fetches no weights.

    Raises:
        `InputError`: a backbone is unknown, cannot be fetched, or lacks the pooling.
    """
    config = build_fusion_config(
        section,
        label_names=label_names,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        image_size=image_size,
    )
    if device == "meta":
        with torch.device("meta"):
            return FusionForImageTextClassification(config)
    vision = load_encoder(section.vision.backbone, config.vision_config, pretrained=section.vision.pretrained)
    text = load_encoder(section.text.backbone, config.text_config, pretrained=section.text.pretrained)
    return FusionForImageTextClassification.from_encoders(config, vision=vision, text=text)


def load_fusion_model(
    path: str | Path,
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    device: str | None = None,
) -> FusionForImageTextClassification:
    """Fusion classifier that goes on from a release (`init_from`), its head included.

    Dropout, activation, normalisation and the loss are the recipe's; the backbones and shapes must be the release's.

    Args:
        path (`str` or `Path`): Folder of the release or run.
        section ([`FusionModelSection`]): Section `model` of the recipe; `reset_head` starts a fresh head.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`Sequence[float]`, *optional*): Weight of each class in the loss.
        device (`str`, *optional*): `"meta"` reads the config alone.

    Raises:
        `InputError`: the folder holds no fusion classifier or no weights, or the recipe's model or labels differ from
            its own.
    """
    config = _released_config(path)
    _check_same_model(config, section, path)
    released = [str(name) for name in (config.id2label or {}).values()]
    if released != list(label_names) and not section.reset_head:
        raise InputError(
            f"init_from {path}: its labels are {', '.join(released)}, the data's are {', '.join(label_names)}; "
            "set model.reset_head: true to start a new head"
        )
    config.dropout, config.activation = section.fusion.dropout, section.fusion.activation
    config.normalize, config.label_smoothing = section.fusion.normalize, label_smoothing
    if device == "meta":
        _set_labels(config, label_names, class_weights)
        with torch.device("meta"):
            return FusionForImageTextClassification(config)
    if not section.reset_head:
        _set_labels(config, label_names, class_weights)
        return _with_weights(path, config)
    config.class_weights = None
    parent = _with_weights(path, config)
    _set_labels(config, label_names, class_weights)
    model = FusionForImageTextClassification.from_encoders(config, vision=parent.vision, text=parent.text)
    for name in ("vision_projection", "text_projection", "fusion"):
        model.get_submodule(name).load_state_dict(parent.get_submodule(name).state_dict())
    return model


def _with_weights(path: str | Path, config: FusionConfig) -> FusionForImageTextClassification:
    try:
        return FusionForImageTextClassification.from_pretrained(path, config=config)
    except OSError as error:
        raise InputError(f"init_from {path}: no model.safetensors there") from error


def _set_labels(config: FusionConfig, label_names: Sequence[str], class_weights: Sequence[float] | None) -> None:
    labels = _labels(label_names)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    config.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]


def _released_config(path: str | Path) -> FusionConfig:
    try:
        values, _ = FusionConfig.get_config_dict(path)
    except OSError as error:
        raise InputError(f"init_from {path}: it has no readable config.json") from error
    if values.get("model_type") != FusionConfig.model_type:
        raise InputError(f"init_from {path}: a {values.get('model_type')} model, where a fusion classifier is needed")
    return FusionConfig.from_dict(values)


def _check_same_model(config: FusionConfig, section: FusionModelSection, path: str | Path) -> None:
    wanted = section.model_dump()
    released = config.to_dict()
    for key, attribute in _FIXED_BY_RELEASE.items():
        outer, _, inner = key.partition(".")
        value = wanted[outer][inner] if inner else wanted[outer]
        if released[attribute] is not None and released[attribute] != value:
            raise InputError(
                f"model.{key}: {value!r}, but init_from {path} was trained with {released[attribute]!r}; set it so"
            )


def _labels(label_names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


@contextmanager
def _names_section(tower: str, section: VisionEncoderSection | TextEncoderSection) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        where = f"model.{tower}: backbone {section.backbone} with pooling {section.pooling}"
        raise InputError(f"{where}: {problem}") from error
