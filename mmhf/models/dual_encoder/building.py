"""From the recipe of a dual encoder to the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL.Image import Resampling
from transformers import (
    BaseImageProcessor,
    BertConfig,
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTConfig,
)

from mmhf.conventions import height_and_width
from mmhf.errors import InputError
from mmhf.models.adapting import adapted
from mmhf.models.backbones import ImageStatistics, load_encoder, load_encoder_config, load_tokenizer
from mmhf.models.building import (
    build_image_processor,
    check_same_model,
    few_bits_values,
    image_processor_of,
    load_released,
    released_config,
    shapes_alone,
)
from mmhf.models.dual_encoder.configuration_dual_encoder import DualEncoderConfig
from mmhf.models.dual_encoder.dropping import drop_at_random
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.pooling import described_as
from mmhf.models.dual_encoder.processing_dual_encoder import DualEncoderProcessor
from mmhf.models.encoders import describe_text, describe_vision, fresh_encoder
from mmhf.models.tokenizers import TOWER_END_ID, TOWER_PAD_ID, TOWER_START_ID, train_text_tokenizer
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.dual_encoder_recipe import (
    ContrastiveRecipe,
    ContrastiveSection,
    DualEncoderModelSection,
    TextTowerSection,
    VisionTowerSection,
)

SIGMOID_BIAS = -10.0
"""Where the bias of the sigmoid loss starts (Zhai et al., "SigLIP"), so that most pairs begin as negatives."""
# Recipe key → DualEncoderConfig attribute, for what decides the shape or the meaning of the weights.
_FIXED_BY_RELEASE = {
    "vision.backbone": "vision_backbone",
    "vision.pooling": "vision_pooling",
    "text.backbone": "text_backbone",
    "text.pooling": "text_pooling",
    "embedding_dim": "embedding_dim",
}
_TEXT_INPUTS = ["input_ids", "attention_mask"]
_HALF = (0.5, 0.5, 0.5)
_SIZES = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}


def build_dual_encoder_config(
    recipe: ContrastiveRecipe, tokenizer: PreTrainedTokenizerBase | None = None
) -> DualEncoderConfig:
    """Config of the dual encoder that a recipe describes; fetches configuration files at most.

    Args:
        recipe ([`ContrastiveRecipe`]): The recipe.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The tokenizer; absent, a text tower from scratch is as large
            as it can become.

    Raises:
        `InputError`: a backbone is unknown, its config cannot be fetched, it lacks the pooling, or images of this
            size do not fit it.
    """
    section, data = recipe.model, recipe.data
    vision, text = section.vision, section.text
    vision_config = _vision_config(vision, data)
    text_config = _text_config(text, data, tokenizer)
    try:
        vision_output = describe_vision(
            vision_config, described_as("vision", vision.pooling), image_size=data.image_size
        )
    except ValueError as error:
        raise _wrong_tower("vision", vision, error) from error
    try:
        text_output = describe_text(text_config, described_as("text", text.pooling))
    except ValueError as error:
        raise _wrong_tower("text", text, error) from error
    return DualEncoderConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_backbone=vision.backbone,
        text_backbone=text.backbone,
        vision_pooling=vision.pooling,
        text_pooling=text.pooling,
        vision_output=vision_output.to_dict(),
        text_output=text_output.to_dict(),
        **few_bits_values("vision", vision, lambda: fresh_encoder(vision_config), vision_output.unused),
        **few_bits_values("text", text, lambda: fresh_encoder(text_config), text_output.unused),
        eot_token_id=None if tokenizer is None else end_of_text_id(tokenizer),
        embedding_dim=section.embedding_dim,
        projection_bias=section.projection_bias,
        initial_temperature=section.temperature.start,
        learn_temperature=section.temperature.learn,
        logit_bias=SIGMOID_BIAS if recipe.contrastive.loss == "sigmoid" else None,
        **_loss_values(recipe.contrastive),
    )


def build_dual_encoder(
    recipe: ContrastiveRecipe, tokenizer: PreTrainedTokenizerBase | None = None, *, device: str | None = None
) -> DualEncoderModel:
    """Dual encoder of a recipe: its pretrained towers, or fresh ones, with fresh projections.

    Args:
        recipe ([`ContrastiveRecipe`]): The recipe.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The tokenizer; only shapes can do without.
        device (`str`, *optional*): `"meta"` builds the shapes alone and fetches no weights.

    Raises:
        `InputError`: a backbone is unknown, cannot be fetched, lacks the pooling, or can do without neither patches
            nor layers.
    """
    config = build_dual_encoder_config(recipe, tokenizer)
    if device == "meta":
        return drop_at_random(adapted(shapes_alone(DualEncoderModel, config), recipe.model), recipe.model.vision)
    vision = _encoder(recipe.model.vision, config.vision_config)
    text = _encoder(recipe.model.text, config.text_config)
    model = adapted(DualEncoderModel.from_encoders(config, vision=vision, text=text), recipe.model)
    return drop_at_random(model, recipe.model.vision)


def load_dual_encoder(path: str | Path, recipe: ContrastiveRecipe, *, device: str | None = None) -> DualEncoderModel:
    """Dual encoder that goes on from a release (`init_from`), its projections and temperature included.

    The loss is the recipe's; all that gives the weights their shape and meaning must be the release's.

    Args:
        path (`str` or `Path`): Folder of the release or run.
        recipe ([`ContrastiveRecipe`]): The recipe.
        device (`str`, *optional*): `"meta"` reads the config alone.

    Raises:
        `InputError`: the folder holds no dual encoder or no weights, or the recipe's model differs from its own.
    """
    config = released_config(DualEncoderConfig, path)
    check_same_model(config, recipe.model.model_dump(), _FIXED_BY_RELEASE, path)
    _check_same_sizes(config, recipe, path)
    _check_images_fit(config, recipe, path)
    config.learn_temperature = recipe.model.temperature.learn
    if recipe.contrastive.loss == "sigmoid" and config.logit_bias is None:
        config.logit_bias = SIGMOID_BIAS
    for name, value in _loss_values(recipe.contrastive).items():
        setattr(config, name, value)
    is_meta = device == "meta"
    model = shapes_alone(DualEncoderModel, config) if is_meta else load_released(DualEncoderModel, path, config)
    return drop_at_random(adapted(model, recipe.model, parent=path), recipe.model.vision)


def _loss_values(section: ContrastiveSection) -> dict[str, Any]:
    """What a model's config keeps of the section: its loss, but not which pairs make up a step."""
    return {name: value for name, value in section if name not in ("batch_size", "hard_negatives")}


def _vision_config(section: VisionTowerSection, data: DataSectionBase) -> PreTrainedConfig:
    if section.backbone is not None:
        return load_encoder_config(
            section.backbone, pretrained=section.pretrained, modality="image", values=section.config
        )
    if any(side % section.patch_size for side in height_and_width(data.image_size)):
        raise InputError(
            f"model.vision.patch_size: images of {data.image_size} px do not divide into patches of "
            f"{section.patch_size} px"
        )
    return ViTConfig(
        image_size=data.image_size if isinstance(data.image_size, int) else list(data.image_size),
        patch_size=section.patch_size,
        hidden_size=section.width,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        intermediate_size=round(section.mlp_ratio * section.width),
        attention_probs_dropout_prob=section.attention_dropout,
        hidden_dropout_prob=0.0,
    )


def _text_config(
    section: TextTowerSection, data: DataSectionBase, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedConfig:
    if section.backbone is not None:
        return load_encoder_config(
            section.backbone, pretrained=section.pretrained, modality="text", values=section.config
        )
    values: dict[str, Any] = {
        "vocab_size": section.vocab_size if tokenizer is None else len(tokenizer),
        "hidden_size": section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "intermediate_size": round(section.mlp_ratio * section.width),
        "max_position_embeddings": data.max_length,
        "hidden_act": "gelu",
    }
    ids: dict[str, Any] = {"pad": TOWER_PAD_ID, "bos": TOWER_START_ID, "eos": TOWER_END_ID}
    if tokenizer is not None:
        ids = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": end_of_text_id(tokenizer)}
    values.update({f"{name}_token_id": token for name, token in ids.items()})
    if section.attention == "causal":
        return CLIPTextConfig(attention_dropout=section.attention_dropout, **values)
    return BertConfig(attention_probs_dropout_prob=section.attention_dropout, hidden_dropout_prob=0.0, **values)


def _encoder(section: VisionTowerSection | TextTowerSection, config: PreTrainedConfig) -> PreTrainedModel:
    if section.backbone is None:
        return fresh_encoder(config)
    return load_encoder(section.backbone, config, pretrained=section.pretrained)


def _check_same_sizes(config: DualEncoderConfig, recipe: ContrastiveRecipe, path: str | Path) -> None:
    towers = {"vision": (recipe.model.vision, config.vision_config), "text": (recipe.model.text, config.text_config)}
    for name, (section, released) in towers.items():
        values = released.to_dict()
        for key, attribute in _SIZES.items() if section.backbone is None else ():
            wanted, size = section.model_dump()[key], values[attribute]
            if wanted != size:
                raise InputError(
                    f"model.{name}.{key}: {wanted}, but init_from {path} was trained with {size}; set it so"
                )


def _check_images_fit(config: DualEncoderConfig, recipe: ContrastiveRecipe, path: str | Path) -> None:
    """Position embeddings of a square can be interpolated to any size, those of a rectangle cannot."""
    pooling = described_as("vision", config.vision_pooling)
    try:
        describe_vision(config.vision_config, pooling, image_size=recipe.data.image_size)
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        raise InputError(f"data.image_size: init_from {path} cannot take it: {problem}") from error


def _wrong_tower(name: str, section: VisionTowerSection | TextTowerSection, error: ValueError) -> InputError:
    problem = str(error).partition("\n")[0]
    what = section.backbone or "the tower from scratch"
    return InputError(f"model.{name}: {what} with pooling {section.pooling}: {problem}")


def build_dual_encoder_processor(
    section: DualEncoderModelSection, data_section: DataSectionBase, captions: Iterable[str]
) -> DualEncoderProcessor:
    """Processor for the towers and image size of a recipe.

    Args:
        section ([`DualEncoderModelSection`]): Section `model` of the recipe.
        data_section ([`DataSectionBase`]): Section `data` of the recipe.
        captions (`Iterable[str]`): What a tokenizer is learnt from, where the recipe names none.

    Raises:
        `InputError`: a file of a backbone cannot be fetched, or the tokenizer has no end-of-text token to pool.
    """
    tokenizer = _tokenizer(section.text, captions, data_section.max_length)
    tokenizer.model_input_names = list(_TEXT_INPUTS)
    max_length = min(data_section.max_length, tokenizer.model_max_length)
    if section.text.pooling == "eot" and end_of_text_id(tokenizer) != tokenizer("a")["input_ids"][-1]:
        raise InputError("model.text.pooling: eot, but the tokenizer ends no text with a token of its own; use mean")
    return DualEncoderProcessor(_image_processor(section, data_section), tokenizer, max_length=max_length)


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a tokenizer ends texts with."""
    token_id: int | None = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return token_id


def _tokenizer(section: TextTowerSection, captions: Iterable[str], max_length: int) -> PreTrainedTokenizerBase:
    name = section.tokenizer or section.backbone
    if name is not None:
        return load_tokenizer(name)
    return train_text_tokenizer(captions, vocab_size=section.vocab_size, max_length=max_length)


def _image_processor(section: DualEncoderModelSection, data_section: DataSectionBase) -> BaseImageProcessor:
    encoder = section.encoders().get("image")
    if encoder is not None:
        return image_processor_of(encoder, data_section)
    centred = ImageStatistics(_HALF, _HALF, Resampling.BICUBIC)
    return build_image_processor(centred, image_size=data_section.image_size, resize=data_section.resize)
