"""From the model section of a recipe to an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmhf.conventions import ImageSize
from mmhf.models.adapting import adapted
from mmhf.models.backbones import load_encoder
from mmhf.models.building import (
    config_of_child,
    config_of_parent,
    label_maps,
    load_released,
    loss_values,
    shapes_alone,
    vision_values,
)
from mmhf.models.classification_loss import PLAIN_LOSS, LossSettings
from mmhf.models.image_classifier.configuration_image_classifier import BackboneForImageClassificationConfig
from mmhf.models.image_classifier.modeling_image_classifier import BackboneForImageClassification
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection

# Recipe key → attribute of the config, for what decides the shape or the meaning of the weights. The head's follow
# where it is kept.
_ENCODER_OF_RELEASE = {"vision.backbone": "vision_backbone", "vision.pooling": "vision_pooling"}
_HEAD_OF_RELEASE = {"head.hidden_dim": "head_hidden_dim", "head.activation": "head_activation"}


def build_image_classifier_config(
    section: ImageClassifierModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    image_size: ImageSize | None = None,
) -> BackboneForImageClassificationConfig:
    """Config of the image classifier that a recipe describes; fetches a configuration file at most.

    Args:
        section ([`ImageClassifierModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        image_size ([`ImageSize`], *optional*): Of the images to come, to refuse what the encoder cannot take.

    Raises:
        `InputError`: the backbone is unknown, its config cannot be fetched, it lacks the pooling, or images of this
            size do not fit it.
    """
    return BackboneForImageClassificationConfig(
        **vision_values(section.vision, image_size=image_size),
        **_head_values(section),
        **loss_values(loss),
        **label_maps(label_names),
    )


def build_image_classifier(
    section: ImageClassifierModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    image_size: ImageSize | None = None,
    device: str | None = None,
) -> BackboneForImageClassification:
    """Image classifier of a recipe, with its pretrained encoder and a fresh head.

    Args:
        section ([`ImageClassifierModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        image_size ([`ImageSize`], *optional*): Of the images to come.
        device (`str`, *optional*): `"meta"` builds the shapes alone and fetches no weights.

    Raises:
        `InputError`: the backbone is unknown, cannot be fetched, or lacks the pooling.
    """
    config = build_image_classifier_config(section, label_names=label_names, loss=loss, image_size=image_size)
    if device == "meta":
        return adapted(shapes_alone(BackboneForImageClassification, config), section)
    vision = load_encoder(section.vision.backbone, config.vision_config, pretrained=section.vision.pretrained)
    return adapted(BackboneForImageClassification(config, vision=vision), section)


def load_image_classifier(
    path: str | Path,
    section: ImageClassifierModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    device: str | None = None,
) -> BackboneForImageClassification:
    """Image classifier that goes on from a release (`init_from`), its head included.

    Dropout and the loss are the recipe's; what gives the weights their shape and meaning must be the release's.

    Args:
        path (`str` or `Path`): Folder of the release or run.
        section ([`ImageClassifierModelSection`]): Section `model` of the recipe; `reset_head` starts a fresh head,
            which may differ from the release's.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        device (`str`, *optional*): `"meta"` reads the config alone.

    Raises:
        `InputError`: the folder holds no image classifier or no weights, or the recipe's model or labels differ from
            its own.
    """
    fixed = _ENCODER_OF_RELEASE if section.reset_head else {**_ENCODER_OF_RELEASE, **_HEAD_OF_RELEASE}
    released = config_of_parent(
        BackboneForImageClassificationConfig,
        path,
        section,
        fixed=fixed,
        label_names=label_names,
        loss=loss,
    )
    config = config_of_child(released, label_names, loss, has_new_head=section.reset_head)
    config.update(_head_values(section))
    if device == "meta":
        return adapted(shapes_alone(BackboneForImageClassification, config), section, parent=path)
    if not section.reset_head:
        return adapted(load_released(BackboneForImageClassification, path, config), section, parent=path)
    parent = load_released(BackboneForImageClassification, path, released)
    return adapted(BackboneForImageClassification(config, vision=parent.vision), section, parent=path)


def _head_values(section: ImageClassifierModelSection) -> dict[str, Any]:
    head = section.head
    return {
        "head_hidden_dim": head.hidden_dim,
        "head_dropout": list(head.dropout),
        "head_activation": head.activation,
    }
