"""From the model section of a recipe to a prefix captioner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from mmhf.conventions import ImageSize
from mmhf.errors import InputError
from mmhf.models.adapting import adapted
from mmhf.models.backbones import load_encoder_config, load_tokenizer
from mmhf.models.building import (
    check_same_model,
    few_bits_values,
    image_processor_of,
    load_released,
    released_config,
    shapes_alone,
)
from mmhf.models.captioner.captioner_parts import complete_config, fresh_vision, load_part
from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig
from mmhf.models.captioner.modeling_captioner import PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.processing_captioner import CaptionerProcessor
from mmhf.models.captioner.projectors import start_among_embeddings
from mmhf.models.tokenizers import END_OF_TEXT_ID, PADDING_ID, train_caption_tokenizer
from mmhf.recipe.captioner_recipe import CaptionerModelSection, GenerationSection, LanguageModelSection
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.nearest import did_you_mean, nearest_names

# Recipe key → attribute of the config, for what decides the shape or the meaning of the weights.
_FIXED_BY_RELEASE = {
    "vision.backbone": "vision_backbone",
    "vision.features": "vision_features",
    "language.backbone": "language_backbone",
    "projector.kind": "projector",
    "projector.hidden_dims": "projector_hidden_dims",
    "projector.activation": "projector_activation",
    "projector.layers": "projector_layers",
    "projector.heads": "projector_heads",
    "projector.width": "projector_width",
    "projector.normalize": "projector_normalize",
}
# What a language model's config may ask to be done to its logits, which the loss in chunks does not do.
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def build_captioner_processor(
    section: CaptionerModelSection, data_section: DataSectionBase, captions: list[str]
) -> CaptionerProcessor:
    """Processor for the backbones and image size of a recipe.

    Args:
        section ([`CaptionerModelSection`]): Section `model` of the recipe.
        data_section ([`DataSectionBase`]): Its section `data`.
        captions (`list[str]`): What `model.language.tokenizer` is made from.

    Raises:
        `InputError`: a file of a backbone cannot be fetched, or the tokenizer has no end-of-text token.
    """
    vision, language = section.vision, section.language
    images = image_processor_of(vision, data_section)
    if language.tokenizer is not None:
        space = " " if section.captions_follow_words() else ""
        written = [f"{space}{caption}" for caption in captions]
        tokenizer: PreTrainedTokenizerBase = train_caption_tokenizer(written, language.tokenizer.vocab_size)
    else:
        tokenizer = load_tokenizer(language.backbone)
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.language: the tokenizer of {language.backbone} has no token that ends a text")
    processor = CaptionerProcessor(
        images, tokenizer, max_length=min(data_section.max_length, tokenizer.model_max_length)
    )
    set_prompt(processor, section)
    return processor


def set_prompt(made: CaptionerProcessor | PrefixCaptionerConfig, section: CaptionerModelSection) -> None:
    """Give a processor or a config what of the recipe's prompt it needs: all of one that names columns."""
    if isinstance(made, CaptionerProcessor):
        made.leading_space = section.captions_follow_words()
    if section.prompt_template().names:
        made.prompt_template, made.prompt_missing = section.prompt, section.prompt_missing
        if isinstance(made, PrefixCaptionerConfig):
            made.prompt_ids = []


def build_captioner_config(
    section: CaptionerModelSection, *, processor: CaptionerProcessor | None = None, image_size: ImageSize | None = None
) -> PrefixCaptionerConfig:
    """Config of the captioner that a recipe describes; fetches configuration files at most.

    Args:
        section ([`CaptionerModelSection`]): Section `model` of the recipe.
        processor ([`CaptionerProcessor`], *optional*): Its tokenizer makes the tokens of the prompt; absent, each
            byte of it is planned as one token.
        image_size ([`ImageSize`], *optional*): Of the images to come.

    Raises:
        `InputError`: a backbone is unknown, its config cannot be fetched, it lacks the features, images of this
            size do not fit it, or its weights cannot have few bits.
    """
    vision, projector = section.vision, section.projector
    template = section.prompt_template()
    prompt = "" if template.names else template.fill({})
    if prompt and processor is not None:
        prompt_ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        prompt_ids = list(prompt.encode())
    config = PrefixCaptionerConfig(
        vision_config=load_encoder_config(
            vision.backbone, pretrained=vision.pretrained, modality="image", values=vision.config
        ),
        language_config=build_language_config(section.language),
        vision_backbone=vision.backbone,
        language_backbone=section.language.backbone,
        vision_features=vision.features,
        projector=projector.kind,
        prefix_length=projector.prefix_length,
        projector_hidden_dims=projector.hidden_dims,
        projector_activation=projector.activation,
        projector_dropout=projector.dropout,
        projector_layers=projector.layers,
        projector_heads=projector.heads,
        projector_width=projector.width,
        projector_normalize=projector.normalize,
        prompt_ids=prompt_ids,
        **_token_ids(processor),
    )
    set_prompt(config, section)
    if projector.kind == "mlp" and vision.features == "patches" and projector.prefix_length is not None:
        raise InputError("model.projector.prefix_length: an mlp makes one token of each patch; use kind: transformer")
    try:
        complete_config(config, image_size=image_size)
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        where = f"model.vision: backbone {vision.backbone} with features {vision.features}"
        raise InputError(f"{where}: {problem}") from error
    assert config.vision_output is not None
    unused = config.vision_output["unused"]
    of_vision = few_bits_values("vision", vision, lambda: fresh_vision(config.vision_config, vision.features), unused)
    of_language = few_bits_values(
        "language", section.language, lambda: AutoModelForCausalLM.from_config(config.language_config)
    )
    config.update({**of_vision, **of_language})
    return config


def build_language_config(section: LanguageModelSection) -> PreTrainedConfig:
    """Config of the language model: its backbone's, or that of a new model.

    Raises:
        `InputError`: the backbone is unknown, has no value of such a name, or changes its logits in a way that the
            loss does not know.
    """
    name = section.backbone
    is_type = "/" not in name and name in CONFIG_MAPPING and not Path(name).is_dir()
    if is_type and section.pretrained:
        raise InputError(f"model.language.backbone: {name} is a kind of model, without weights; set pretrained: false")
    if is_type and section.tokenizer is None:
        raise InputError(f"model.language.tokenizer: {name} is a kind of model and has none; give its vocab_size")
    config = CONFIG_MAPPING[name]() if is_type else load_encoder_config(name, pretrained=section.pretrained)
    values = dict(section.config)
    for key in values:
        if key not in (known := config.to_dict()):
            raise InputError(f"model.language.config.{key}: unknown{did_you_mean(nearest_names(key, known))}")
    if section.tokenizer is not None:
        values |= {"vocab_size": section.tokenizer.vocab_size, "bos_token_id": None}
        values |= {"eos_token_id": END_OF_TEXT_ID, "pad_token_id": PADDING_ID}
    if values:
        config = _changed(config, values, name)
    text_values = config.get_text_config().to_dict()
    for key in _RESCALED_LOGITS:
        if text_values.get(key) not in (None, 1.0):
            raise InputError(f"model.language.backbone: {name} changes its logits ({key}); choose another model")
    return config


def build_captioner_model(
    section: CaptionerModelSection,
    *,
    processor: CaptionerProcessor | None = None,
    image_size: ImageSize | None = None,
    device: str | None = None,
) -> PrefixCaptionerForConditionalGeneration:
    """Captioner of a recipe, with its pretrained encoders and a fresh projector.

    Args:
        section ([`CaptionerModelSection`]): Section `model` of the recipe.
        processor ([`CaptionerProcessor`], *optional*): Makes its inputs; absent when only shapes are wanted.
        image_size ([`ImageSize`], *optional*): Of the images to come.
        device (`str`, *optional*): `"meta"` builds the shapes alone and fetches no weights.

    Raises:
        `InputError`: a backbone is unknown, cannot be fetched, or does not fit.
    """
    config = build_captioner_config(section, processor=processor, image_size=image_size)
    if device == "meta":
        return adapted(shapes_alone(PrefixCaptionerForConditionalGeneration, config), section)
    if section.vision.pretrained:
        vision = load_part(config, "vision", section.vision.backbone)
    else:
        vision = fresh_vision(config.vision_config, config.vision_features)
    if section.language.pretrained:
        language = load_part(config, "language", section.language.backbone)
    else:
        language = AutoModelForCausalLM.from_config(config.language_config)
    model = PrefixCaptionerForConditionalGeneration(config, vision=vision, language=language)
    start_among_embeddings(model.projector, language.get_input_embeddings())
    return adapted(model, section)


def load_captioner_model(
    path: str | Path, section: CaptionerModelSection, *, device: str | None = None
) -> PrefixCaptionerForConditionalGeneration:
    """Captioner that goes on from a release (`init_from`).

    Args:
        path (`str` or `Path`): Folder of the release or run.
        section ([`CaptionerModelSection`]): Section `model` of the recipe; it may add `lora` to a release without.
        device (`str`, *optional*): `"meta"` reads the config alone.

    Raises:
        `InputError`: the folder holds no captioner or no weights, or the recipe's model differs from its own.
    """
    config = released_config(PrefixCaptionerConfig, path)
    check_same_model(config, section.model_dump(), _FIXED_BY_RELEASE, path)
    asked = section.projector.prefix_length
    if asked is not None and asked != config.prefix_length:
        raise InputError(f"model.projector.prefix_length: {asked}, but init_from {path} has {config.prefix_length}")
    config.projector_dropout = section.projector.dropout
    if config.prompt_template is not None and not section.prompt_template().names:
        raise InputError(f"model.prompt: init_from {path} has {config.prompt_template!r}; name columns, too")
    if config.neighbours is not None and section.neighbours is None:
        raise InputError(f"model.neighbours: init_from {path} reads captions of similar images; give the recipe some")
    set_prompt(config, section)
    if device == "meta":
        return adapted(shapes_alone(PrefixCaptionerForConditionalGeneration, config), section, parent=path)
    return adapted(load_released(PrefixCaptionerForConditionalGeneration, path, config), section, parent=path)


def generation_config(section: GenerationSection, processor: CaptionerProcessor) -> GenerationConfig:
    """How a model writes captions unless it is told otherwise; saved with it."""
    values = section.model_dump()
    if not section.do_sample:
        for name in ("temperature", "top_p", "top_k"):
            values.pop(name)
    if section.num_beams == 1:
        values.pop("length_penalty")
    tokenizer = processor.tokenizer
    return GenerationConfig(**values, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def _token_ids(processor: CaptionerProcessor | None) -> dict[str, Any]:
    """What Trainer compares with the tokenizer's own."""
    if processor is None:
        return {}
    tokenizer = processor.tokenizer
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _changed(config: PreTrainedConfig, values: dict[str, Any], name: str) -> PreTrainedConfig:
    kept = config.to_dict()
    if "num_hidden_layers" in values:
        kept.pop("layer_types", None)  # one entry a layer, made anew from the number of layers
    try:
        return type(config).from_dict({**kept, **values})
    except (ValueError, TypeError) as error:
        raise InputError(f"model.language.config of {name}: {str(error).partition(chr(10))[0]}") from error
