"""What building a model from a recipe needs: encoders, image processor, labels, and a release to go on from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModel, BaseImageProcessor, CLIPImageProcessor, PreTrainedConfig, PreTrainedModel

from mmhf.conventions import ImageSize, height_and_width
from mmhf.errors import InputError
from mmhf.models.backbones import ImageStatistics, image_statistics, load_encoder_config
from mmhf.models.classification_loss import LossSettings
from mmhf.models.classifier_config import ClassifierConfig
from mmhf.models.encoders import describe_text, describe_vision, drop_unused, fresh_encoder
from mmhf.models.naflex import NaflexImageProcessor, sequence_patch_size
from mmhf.models.quantization import quantize
from mmhf.models.targets import target_named, target_of
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.fusion_recipe import FusionModelSection
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection
from mmhf.recipe.sections import EncoderSection, PretrainedSection, TextEncoderSection, VisionEncoderSection

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
ClassifierConfigT = TypeVar("ClassifierConfigT", bound=ClassifierConfig)
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def vision_values(section: VisionEncoderSection, *, image_size: ImageSize | None) -> dict[str, Any]:
    """An image encoder as a config keeps it; fetches its configuration file at most.

    Raises:
        `InputError`: the backbone is unknown, its config cannot be fetched, it lacks the pooling, images of this size
            do not fit it, or its weights cannot have few bits.
    """
    config = load_encoder_config(
        section.backbone, pretrained=section.pretrained, modality="image", values=section.config
    )
    with _names_encoder("vision", section):
        output = describe_vision(config, section.pooling, image_size=image_size)
    return {
        "vision_config": config,
        "vision_backbone": section.backbone,
        "vision_pooling": section.pooling,
        "vision_output": output.to_dict(),
        **few_bits_values("vision", section, lambda: fresh_encoder(config), output.unused),
    }


def text_values(section: TextEncoderSection) -> dict[str, Any]:
    """A text encoder as a config keeps it, as `vision_values` does for images."""
    config = load_encoder_config(
        section.backbone, pretrained=section.pretrained, modality="text", values=section.config
    )
    with _names_encoder("text", section):
        output = describe_text(config, section.pooling)
    return {
        "text_config": config,
        "text_backbone": section.backbone,
        "text_pooling": section.pooling,
        "text_output": output.to_dict(),
        **few_bits_values("text", section, lambda: fresh_encoder(config), output.unused),
    }


def few_bits_values(
    encoder: str, section: PretrainedSection, make: Callable[[], PreTrainedModel], unused: Sequence[str] = ()
) -> dict[str, Any]:
    """The few bits of an encoder's frozen weights as a config keeps them, before any weights are fetched.

    Args:
        encoder (`str`): `vision`, `text` or `language`.
        section ([`PretrainedSection`]): Of the recipe.
        make (`Callable`): Builds the encoder; called on the meta device.
        unused (`Sequence[str]`): What will be dropped of it, see `drop_unused`.

    Raises:
        `InputError`: what rounds them is not installed, or the encoder has no layers that could have them.
    """
    values = None if section.quantization is None else section.quantization.model_dump()
    if values is not None:
        with torch.device("meta"):
            shapes = make()
        drop_unused(shapes, tuple(unused))
        try:
            quantize(shapes, values)
        except InputError as error:
            raise InputError(f"model.{encoder}.quantization: {error}") from error
    return {f"{encoder}_quantization": values}


def build_image_processor(statistics: ImageStatistics, *, image_size: ImageSize, resize: str) -> CLIPImageProcessor:
    """Image processor for images of one size.

    Args:
        statistics ([`ImageStatistics`]): Mean, standard deviation and resampling of the encoder.
        image_size ([`ImageSize`]): Side, or height and width, in pixels.
        resize (`str`): `squash` ignores the aspect ratio; `crop` resizes the shorter side and crops the centre to a
            square.
    """
    height, width = height_and_width(image_size)
    box = {"height": height, "width": width}
    return CLIPImageProcessor(
        size={"shortest_edge": height} if resize == "crop" else box,
        do_center_crop=resize == "crop",
        crop_size=box,
        image_mean=list(statistics.mean),
        image_std=list(statistics.std),
        resample=statistics.interpolation,
    )


def image_processor_of(section: EncoderSection, data_section: DataSectionBase) -> BaseImageProcessor:
    """Image processor for the image encoder and image size of a recipe.

    Raises:
        `InputError`: a file of the backbone cannot be fetched, or it does not take images in their own shape where
            the recipe wants them so.
    """
    config = load_encoder_config(
        section.backbone, pretrained=section.pretrained, modality="image", values=section.config
    )
    patches = patches_of_own_shape(section, data_section)
    statistics = image_statistics(section.backbone, config, pretrained=section.pretrained)
    if patches is None:
        return build_image_processor(statistics, image_size=data_section.image_size, resize=data_section.resize)
    side, most = patches
    return NaflexImageProcessor(
        patch_size=side,
        max_num_patches=most,
        image_mean=list(statistics.mean),
        image_std=list(statistics.std),
        resample=statistics.interpolation,
    )


def patches_of_own_shape(section: EncoderSection, data_section: DataSectionBase) -> tuple[int, int] | None:
    """Side in pixels of the patches that images in their own shape are cut into, and how many an image has at most;
    None where a recipe does not want images so.

    Raises:
        `InputError`: the backbone does not take them, or its patches do not divide `image_size`.
    """
    if data_section.resize != "naflex":
        return None
    size = data_section.image_size
    assert isinstance(size, int)
    config = load_encoder_config(
        section.backbone, pretrained=section.pretrained, modality="image", values=section.config
    )
    with torch.device("meta"):
        side = sequence_patch_size(AutoModel.from_config(config))
    if side is None:
        raise InputError(
            f"data.resize: naflex, but backbone {section.backbone} takes images of one shape; use squash, or an "
            "encoder that takes each in its own: timm/naflexvit_… or SigLIP 2's (siglip2_vision_model)"
        )
    if size % side:
        nearest = max(side, round(size / side) * side)
        raise InputError(
            f"data.image_size: {size} is no multiple of the {side} px of a patch of backbone {section.backbone}, as "
            f"resize: naflex needs; use {nearest}"
        )
    return side, (size // side) ** 2


def describe_own_shapes(section: EncoderSection, data_section: DataSectionBase) -> str | None:
    """What a plan says of images that keep their shape; None where all get one.

    Raises:
        `InputError`: see `patches_of_own_shape`.
    """
    patches = patches_of_own_shape(section, data_section)
    if patches is None:
        return None
    side, most = patches
    return (
        f"each image keeps its proportions, as at most {most} patches of {side} px; the image encoder is stored whole "
        "or not at all"
    )


def check_same_resize(image_processor: Any, data_section: DataSectionBase, path: str | Path) -> None:
    """Refuse to go on from a release whose images keep their shape where the recipe's do not, or the other way round.

    Raises:
        `InputError`: so it is.
    """
    if isinstance(image_processor, NaflexImageProcessor) != (data_section.resize == "naflex"):
        was = "naflex" if data_section.resize != "naflex" else "squash or crop"
        raise InputError(
            f"data.resize: {data_section.resize}, but init_from {path} prepares images by {was}; set it so"
        )


def label_maps(label_names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a config, for class names in the order of their ids."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


def loss_values(loss: LossSettings) -> dict[str, Any]:
    """A loss as a config keeps it."""
    return {
        "label_smoothing": loss.label_smoothing,
        "class_weights": _as_floats(loss.class_weights),
        "focal_gamma": loss.focal_gamma,
        "logit_adjustment": _as_floats(loss.logit_adjustment),
        "asymmetric": None if loss.asymmetric is None else dict(loss.asymmetric),
        "huber_delta": loss.huber_delta,
        "target_mean": _as_floats(loss.target_mean),
        "target_std": _as_floats(loss.target_std),
        "problem_type": loss.problem_type,
        "ordinal": loss.ordinal,
    }


def _as_floats(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def shapes_alone(model_class: type[ModelT], config: PreTrainedConfig) -> ModelT:
    """A model on the meta device: no weights, no memory."""
    with torch.device("meta"):
        return model_class(config)


def config_of_parent(
    config_class: type[ClassifierConfigT],
    path: str | Path,
    section: FusionModelSection | ImageClassifierModelSection,
    *,
    fixed: Mapping[str, str],
    label_names: Sequence[str],
    loss: LossSettings,
) -> ClassifierConfigT:
    """Config of the classifier that training starts from, once the recipe is found to fit it.

    Args:
        config_class (`type[PreTrainedConfig]`): Of the family.
        path (`str` or `Path`): Folder of the release or run.
        section (`FusionModelSection` or `ImageClassifierModelSection`): The recipe's model.
        fixed (`Mapping[str, str]`): See `check_same_model`.
        label_names, loss: The run's; with `reset_head` they may be for another kind of target than the release's.

    Raises:
        `InputError`: the folder holds no classifier of this family, or the recipe's model or labels differ from its
            own.
    """
    config = released_config(config_class, path)
    check_same_model(config, section.model_dump(), fixed, path)
    if not section.reset_head:
        check_same_labels(config, label_names, path)
        if (released := target_of(config)) is not target_named(loss.problem_type, ordinal=loss.ordinal):
            raise InputError(
                f"init_from {path}: its rows had {released.learns}, unlike those of the data "
                "(data.multi_label, data.regression, data.ordinal); set model.reset_head: true to start a new head"
            )
    return config


def config_of_child(
    parent: ClassifierConfigT, label_names: Sequence[str], loss: LossSettings, *, has_new_head: bool
) -> ClassifierConfigT:
    """A released config with the labels and the loss of the new run, uncalibrated and without views."""
    config = copy.deepcopy(parent)
    values = {**label_maps(label_names), **loss_values(loss)}
    if not has_new_head:
        # A head that is kept answers in its parent's deviations.
        values |= {"target_mean": parent.target_mean, "target_std": parent.target_std}
    for name, value in values.items():
        setattr(config, name, value)
    config.calibration_temperature, config.abstain_below, config.thresholds, config.views = 1.0, None, None, None
    return config


def released_config(config_class: type[ConfigT], path: str | Path) -> ConfigT:
    """Config of the release that training starts from (`init_from`).

    Raises:
        `InputError`: the folder has no config, or that of another family.
    """
    try:
        values, _ = config_class.get_config_dict(path)
    except OSError as error:
        raise InputError(f"init_from {path}: it has no readable config.json") from error
    if values.get("model_type") != config_class.model_type:
        raise InputError(
            f"init_from {path}: a {values.get('model_type')} model, where {config_class.model_type} is needed"
        )
    return config_class.from_dict(values)


def check_same_model(
    config: PreTrainedConfig, section: Mapping[str, Any], fixed: Mapping[str, str], path: str | Path
) -> None:
    """Refuse a recipe whose model has other shapes than the release it starts from.

    Args:
        config (`PreTrainedConfig`): Of the release.
        section (`Mapping`): Section `model` of the recipe, as nested mappings.
        fixed (`Mapping[str, str]`): Dotted recipe key → attribute of the config, for what must agree.
        path (`str` or `Path`): The release, for the message.

    Raises:
        `InputError`: a value differs. A backbone without a name, in a model that no recipe made, agrees with any.
    """
    released = config.to_dict()
    quantized = [name for name, each in section.items() if isinstance(each, Mapping) and "quantization" in each]
    few_bits = {f"{name}.quantization": f"{name}_quantization" for name in quantized}
    for key, attribute in {**fixed, **few_bits}.items():
        outer, _, inner = key.partition(".")
        value = section[outer][inner] if inner else section[outer]
        is_unknown = released[attribute] is None and attribute.endswith("_backbone")
        if not is_unknown and released[attribute] != value:
            raise InputError(
                f"model.{key}: {value!r}, but init_from {path} was trained with {released[attribute]!r}; set it so"
            )


def check_same_labels(config: PreTrainedConfig, label_names: Sequence[str], path: str | Path) -> None:
    """Refuse data with other labels than the release's, whose head training would go on with.

    Raises:
        `InputError`: the labels or their order differ.
    """
    released = [str(name) for name in (config.id2label or {}).values()]
    if released != list(label_names):
        raise InputError(
            f"init_from {path}: its labels are {', '.join(released)}, the data's are {', '.join(label_names)}; "
            "set model.reset_head: true to start a new head"
        )


def load_released(model_class: type[ModelT], path: str | Path, config: PreTrainedConfig) -> ModelT:
    """Model of a release, under a config that may differ from its own in what changes no shape.

    Raises:
        `InputError`: the folder has no weights.
    """
    try:
        return model_class.from_pretrained(path, config=config)
    except OSError as error:
        raise InputError(f"init_from {path}: no model.safetensors there") from error


@contextmanager
def _names_encoder(tower: str, section: VisionEncoderSection | TextEncoderSection) -> Iterator[None]:
    """Turn a `ValueError` about an encoder into an `InputError` that names the recipe's key, backbone and pooling."""
    try:
        yield
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        where = f"model.{tower}: backbone {section.backbone} with pooling {section.pooling}"
        raise InputError(f"{where}: {problem}") from error
