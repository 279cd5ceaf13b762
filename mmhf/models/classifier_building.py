"""What building any classifier from a recipe needs: its labels, and a release to go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig, PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.classification_loss import LossSettings
from mmhf.recipe.schema import TextEncoderSection, VisionEncoderSection

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


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
    }


def _as_floats(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def set_labels(config: PreTrainedConfig, label_names: Sequence[str], loss: LossSettings) -> None:
    """Give a released config the labels and the loss of the run to come, which has to be calibrated anew."""
    for name, value in {**label_maps(label_names), **loss_values(loss)}.items():
        setattr(config, name, value)
    config.calibration_temperature, config.abstain_below = 1.0, None


def forget_classes(config: PreTrainedConfig) -> None:
    """Take what a released config says of each class away, before the classes become others."""
    config.class_weights = config.logit_adjustment = None


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
        `InputError`: a value differs; one that the release does not know agrees with any.
    """
    released = config.to_dict()
    for key, attribute in fixed.items():
        outer, _, inner = key.partition(".")
        value = section[outer][inner] if inner else section[outer]
        if released[attribute] is not None and released[attribute] != value:
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
def names_encoder(tower: str, section: VisionEncoderSection | TextEncoderSection) -> Iterator[None]:
    """Turn a `ValueError` about an encoder into an `InputError` that names the recipe's key, backbone and pooling."""
    try:
        yield
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        where = f"model.{tower}: backbone {section.backbone} with pooling {section.pooling}"
        raise InputError(f"{where}: {problem}") from error
