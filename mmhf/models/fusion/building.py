"""From the model section of a recipe to a fusion classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmhf.conventions import ImageSize
from mmhf.errors import InputError
from mmhf.models.adapting import adapted
from mmhf.models.backbones import load_encoder, load_tokenizer
from mmhf.models.building import (
    config_of_child,
    config_of_parent,
    image_processor_of,
    label_maps,
    load_released,
    loss_values,
    shapes_alone,
    text_values,
    vision_values,
)
from mmhf.models.classification_loss import PLAIN_LOSS, LossSettings
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.fusion.configuration_fusion import FusionConfig
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification
from mmhf.models.fusion.processing_fusion import FusionProcessor
from mmhf.models.text_tables import TableEncoder
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.fusion_recipe import FusionModelSection

# Recipe key → FusionConfig attribute, for what decides the shape or the meaning of the weights.
_FIXED_BY_RELEASE = {
    "vision.backbone": "vision_backbone",
    "vision.pooling": "vision_pooling",
    "text.backbone": "text_backbone",
    "text.pooling": "text_pooling",
    "embedding_dim": "embedding_dim",
    "image_projection.hidden_dims": "image_hidden_dims",
    "image_projection.activation": "image_activation",
    "text_projection.hidden_dims": "text_hidden_dims",
    "text_projection.activation": "text_activation",
    "fusion.strategy": "strategy",
    "fusion.hidden_dims": "hidden_dims",
    "fusion.activation": "activation",
    "fusion.normalize": "normalize",
}
_FIXED_OF_COLUMNS = {"columns.hidden_dims": "columns_hidden_dims", "columns.activation": "columns_activation"}


def build_fusion_config(
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    missing_modalities: Sequence[str] = (),
    image_size: ImageSize | None = None,
    text_table: TableEncoder | None = None,
    columns: ColumnFeatures | None = None,
) -> FusionConfig:
    """Config of the fusion classifier that a recipe describes; fetches configuration files at most.

    Args:
        section ([`FusionModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        missing_modalities (`Sequence[str]`, *optional*): Those that rows may lack, `image`, `text` or both.
        image_size ([`ImageSize`], *optional*): Of the images to come, to refuse what the encoder cannot take.
        text_table ([`TableEncoder`], *optional*): What made the table of text embeddings that the recipe names.
        columns ([`ColumnFeatures`], *optional*): What the training rows made of the recipe's columns.

    Raises:
        `InputError`: a backbone is unknown, its config cannot be fetched, it lacks the pooling, or images of this
            size do not fit it.
    """
    fusion = section.fusion
    of_columns: dict[str, Any] = {}
    if section.columns is not None and columns is not None:
        of_columns = {
            "columns": columns.to_dict(),
            "columns_hidden_dims": section.columns.hidden_dims,
            "columns_activation": section.columns.activation,
        }
    return FusionConfig(
        **vision_values(section.vision, image_size=image_size),
        **text_values(section.text),
        text_table=None if text_table is None else text_table.to_dict(),
        embedding_dim=section.embedding_dim,
        strategy=fusion.strategy,
        hidden_dims=fusion.hidden_dims,
        activation=fusion.activation,
        normalize=fusion.normalize,
        image_hidden_dims=section.image_projection.hidden_dims,
        image_activation=section.image_projection.activation,
        text_hidden_dims=section.text_projection.hidden_dims,
        text_activation=section.text_projection.activation,
        **of_columns,
        **_recipe_values(section, loss, missing_modalities),
        **loss_values(loss),
        **label_maps(label_names),
    )


def build_fusion_model(
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    missing_modalities: Sequence[str] = (),
    image_size: ImageSize | None = None,
    text_table: TableEncoder | None = None,
    columns: ColumnFeatures | None = None,
    device: str | None = None,
) -> FusionForImageTextClassification:
    """Fusion classifier of a recipe, with its pretrained encoders and a fresh head.

    Args:
        section ([`FusionModelSection`]): Section `model` of the recipe.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        missing_modalities (`Sequence[str]`, *optional*): Those that rows may lack, `image`, `text` or both.
        image_size ([`ImageSize`], *optional*): Of the images to come.
        text_table ([`TableEncoder`], *optional*): What made the table of text embeddings that the recipe names; the
            model then holds no text encoder.
        columns ([`ColumnFeatures`], *optional*): What the training rows made of the recipe's columns.
        device (`str`, *optional*): `"meta"` builds the shapes alone and fetches no weights.

    Raises:
        `InputError`: a backbone is unknown, cannot be fetched, or lacks the pooling.
    """
    config = build_fusion_config(
        section,
        label_names=label_names,
        loss=loss,
        missing_modalities=missing_modalities,
        image_size=image_size,
        text_table=text_table,
        columns=columns,
    )
    if device == "meta":
        return adapted(shapes_alone(FusionForImageTextClassification, config), section)
    vision = load_encoder(section.vision.backbone, config.vision_config, pretrained=section.vision.pretrained)
    text = None
    if text_table is None:
        text = load_encoder(section.text.backbone, config.text_config, pretrained=section.text.pretrained)
    return adapted(FusionForImageTextClassification.from_encoders(config, vision=vision, text=text), section)


def load_fusion_model(
    path: str | Path,
    section: FusionModelSection,
    *,
    label_names: Sequence[str],
    loss: LossSettings = PLAIN_LOSS,
    missing_modalities: Sequence[str] = (),
    text_table: TableEncoder | None = None,
    device: str | None = None,
) -> FusionForImageTextClassification:
    """Fusion classifier that goes on from a release (`init_from`), its head included.

    Dropout and the loss are the recipe's; all that gives the weights their shape and meaning must be the release's.

    Args:
        path (`str` or `Path`): Folder of the release or run.
        section ([`FusionModelSection`]): Section `model` of the recipe; `reset_head` starts a fresh head.
        label_names (`Sequence[str]`): Names of the classes in the order of their ids.
        loss ([`LossSettings`], *optional*): Absent: plain cross-entropy.
        missing_modalities (`Sequence[str]`, *optional*): Those that rows may lack, `image`, `text` or both.
        text_table ([`TableEncoder`], *optional*): What made the table of text embeddings that the recipe names.
        device (`str`, *optional*): `"meta"` reads the config alone.

    Raises:
        `InputError`: the folder holds no fusion classifier or no weights, or the recipe's model or labels differ from
            its own.
    """
    released = config_of_parent(
        FusionConfig,
        path,
        section,
        fixed=_FIXED_BY_RELEASE if section.columns is None else {**_FIXED_BY_RELEASE, **_FIXED_OF_COLUMNS},
        label_names=label_names,
        loss=loss,
    )
    if released.stand_in == "learnt" and section.modalities.stand_in != "learnt":
        raise InputError(
            f"model.modalities.stand_in: {section.modalities.stand_in}, but init_from {path} has learnt ones; "
            "set it to learnt"
        )
    check_same_columns(released.columns, section, path)
    check_same_table(released, text_table, f"init_from {path}")
    released.update(_recipe_values(section, loss, missing_modalities))
    config = config_of_child(released, label_names, loss, has_new_head=section.reset_head)
    if device == "meta":
        return adapted(shapes_alone(FusionForImageTextClassification, config), section, parent=path)
    if not section.reset_head:
        return adapted(load_released(FusionForImageTextClassification, path, config), section, parent=path)
    parent = load_released(FusionForImageTextClassification, path, released)
    model = FusionForImageTextClassification.from_encoders(config, vision=parent.vision, text=parent.text)
    names = ["vision_projection", "text_projection", "fusion"]
    for name in (*names, "columns_projection") if released.columns is not None else names:
        model.get_submodule(name).load_state_dict(parent.get_submodule(name).state_dict())
    return adapted(model, section, parent=path)


def _recipe_values(section: FusionModelSection, loss: LossSettings, missing: Sequence[str]) -> dict[str, Any]:
    """What is the recipe's choice even where it goes on from a release."""
    return {
        "dropout": section.fusion.dropout,
        "image_dropout": section.image_projection.dropout,
        "text_dropout": section.text_projection.dropout,
        "columns_dropout": 0.0 if section.columns is None else section.columns.dropout,
        "stand_in": section.modalities.stand_in,
        "mask": section.modalities.mask,
        "missing_modalities": list(missing),
        "auxiliary_weights": dict(loss.auxiliary_weights),
    }


def check_same_columns(released: Mapping[str, Any] | None, section: FusionModelSection, path: str | Path) -> None:
    """Refuse a recipe whose columns are others than those of the release that it starts from.

    Args:
        released (`Mapping`, *optional*): [`ColumnFeatures`] of the release; absent = it reads no columns.
        section ([`FusionModelSection`]): Section `model` of the recipe.
        path (`str` or `Path`): The release, for the message.

    Raises:
        `InputError`: so it is.
    """
    numbers, categories = (
        ([], [])
        if released is None
        else ([each["name"] for each in released[kind]] for kind in ("numbers", "categories"))
    )
    own = section.columns
    if (numbers, categories) != ([], []) and own is None:
        named = f"{{numbers: [{', '.join(numbers)}], categories: [{', '.join(categories)}]}}"
        raise InputError(f"model.columns: absent, but init_from {path} reads columns; write {named}")
    if own is not None and (own.numbers, own.categories) != (numbers, categories):
        reads = ", ".join([*numbers, *categories]) or "no columns"
        raise InputError(
            f"model.columns: {', '.join([*own.numbers, *own.categories])}, but init_from {path} reads {reads}"
            f"{'; name the same ones in the same order' if released is not None else '; start without init_from'}"
        )


def check_same_table(config: FusionConfig, table: TableEncoder | None, who: str) -> None:
    """Refuse a table of text embeddings that another encoder made than the one that a model was trained on.

    Args:
        config ([`FusionConfig`]): Of the model.
        table ([`TableEncoder`], *optional*): What made the table at hand; absent = there is none.
        who (`str`): The model, for the message.

    Raises:
        `InputError`: the model has a text encoder and there is a table, the other way round, or the tables differ.
    """
    if config.text_table is None and table is not None:
        raise InputError(f"{who}: has a text encoder of its own and reads no table of text embeddings; leave it away")
    if config.text_table is None:
        return
    expected = TableEncoder.from_dict(config.text_table)
    if table is None:
        raise InputError(
            f"{who}: was trained on a table of text embeddings of {expected.source}; name one in model.text.embeddings"
        )
    for name, value in expected.to_dict().items():
        if name not in ("backbone", "source") and table.to_dict()[name] != value:
            raise InputError(
                f"{who}: was trained on text embeddings of {expected.source} with {name} {value!r}, but those of the "
                f"table are of {table.source} with {table.to_dict()[name]!r}; make one with mmhf embed --text"
            )


def build_fusion_processor(
    section: FusionModelSection,
    data_section: DataSectionBase,
    *,
    text_table: TableEncoder | None = None,
    columns: ColumnFeatures | None = None,
) -> FusionProcessor:
    """Processor for the backbones and image size of a recipe.

    Args:
        section ([`FusionModelSection`]): Section `model` of the recipe.
        data_section (`DataSectionBase`): Section `data` of the recipe.
        text_table ([`TableEncoder`], *optional*): What made the table of text embeddings; texts are then prepared as
            they were for it.
        columns ([`ColumnFeatures`], *optional*): What the training rows made of the recipe's columns.

    Raises:
        `InputError`: a file of a backbone cannot be fetched.
    """
    images = image_processor_of(section.vision, data_section)
    kept = None if columns is None else columns.to_dict()
    if text_table is not None:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(text_table.source)
        max_length, prefix = text_table.max_length, text_table.prefix
    else:
        tokenizer = load_tokenizer(section.text.backbone)
        max_length, prefix = min(data_section.max_length, tokenizer.model_max_length), ""
    return FusionProcessor(images, tokenizer, max_length=max_length, text_prefix=prefix, columns=kept)
