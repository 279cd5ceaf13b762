"""`checkpoint_epoch_N.pth` and `best_model.pth` of the CLIP program: a vision and a text transformer from scratch."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL.Image import Resampling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from mmhf.conventions import ImageSize
from mmhf.conversion.checkpoint import Checkpoint
from mmhf.conversion.clip_towers import (
    Tower,
    find_tower,
    is_patches,
    module_of,
    projection_tensors,
    tower_tensors,
)
from mmhf.conversion.converting import Options, Parts, Predecessor
from mmhf.conversion.encoders import kept_names
from mmhf.errors import InputError
from mmhf.models.backbones import ImageStatistics, load_tokenizer
from mmhf.models.building import build_image_processor
from mmhf.models.dual_encoder.building import end_of_text_id
from mmhf.models.dual_encoder.configuration_dual_encoder import DualEncoderConfig
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.pooling import described_as
from mmhf.models.dual_encoder.processing_dual_encoder import DualEncoderProcessor
from mmhf.models.encoders import describe_text, describe_vision
from mmhf.recipe import ResolvedRecipe

_CLIP_TOKENIZER, _CLIP_VOCABULARY = "openai/clip-vit-base-patch32", 49408
_IMAGENET = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), Resampling.BILINEAR)
_NORM_EPS = 1e-5
"""torch.nn.LayerNorm's, which the program's layers have."""


class ClipFromScratch(Predecessor):
    name = "clip-from-scratch"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        has_patches = any(is_patches(tensor) for tensor in checkpoint.weights.values())
        scalars = [name for name, tensor in checkpoint.weights.items() if tensor.numel() == 1 and "temp" in name]
        return has_patches and (
            "text_depth" in checkpoint.settings or bool(scalars) or _scale_name(checkpoint) is not None
        )

    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        vision, text = self._towers(checkpoint)
        settings, weights = checkpoint.settings, checkpoint.weights
        patch = weights[vision.tokens["patches.weight"]].shape[-1]
        count = _rows(weights[vision.tokens["positions"]]) - ("class" in vision.tokens)
        side = math.isqrt(count) * patch
        length = _rows(weights[text.tokens["positions"]])
        dimension = vision.output_width(weights)
        text_heads = int(settings.get("text_num_heads", max(text.width // 64, 1)))
        causal = any("mask" in name and name.startswith(text.prefix) for name in weights)
        return {
            "task": "contrastive",
            "model": {
                "vision": {
                    "patch_size": patch,
                    "width": vision.width,
                    "layers": vision.layers,
                    "heads": int(settings.get("num_heads", max(vision.width // 64, 1))),
                    "mlp_ratio": vision.hidden / vision.width,
                    "pooling": "cls" if "class" in vision.tokens else "avg",
                },
                "text": {
                    "width": text.width,
                    "layers": text.layers,
                    "heads": text_heads,
                    "mlp_ratio": text.hidden / text.width,
                    "attention": "causal" if causal else "bidirectional",
                    "pooling": "eot",
                    "vocab_size": max(_rows(weights[text.tokens["words"]]), 261),
                },
                "embedding_dim": dimension,
                "temperature": {"start": round(min(max(self._temperature(checkpoint), 0.01), 1.0), 6)},
            },
            "data": {
                "source": "flickr30k",
                "path": "data/flickr30k",
                "image_size": side,
                "max_length": length,
                "captions": "all",
            },
            "contrastive": {"batch_size": int(settings.get("batch_size", 64)), "same_image": "negative"},
            "training": {
                "per_device_train_batch_size": int(settings.get("batch_size", 64)),
                "num_train_epochs": float(settings.get("num_epochs", 20)),
                "learning_rate": float(settings.get("learning_rate", 1e-4)),
                "weight_decay": float(settings.get("weight_decay", 1e-4)),
                "lr_scheduler_type": "cosine",
                "metric_for_best_model": "mean_recall",
            },
        }

    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        recipe: Any = resolved.recipe
        section, data = recipe.model, recipe.data
        vision, text = self._towers(checkpoint)
        weights = checkpoint.weights
        tokenizer = _tokenizer(checkpoint, options, _rows(weights[text.tokens["words"]]), data.max_length)
        vision_config = _vision_config(section.vision, data.image_size, with_class="class" in vision.tokens)
        text_config = _text_config(section.text, _rows(weights[text.tokens["words"]]), data.max_length, tokenizer)
        vision_output = describe_vision(
            vision_config, described_as("vision", section.vision.pooling), image_size=data.image_size
        )
        text_output = describe_text(text_config, described_as("text", section.text.pooling))
        projections = [tower.projection for tower in (vision, text)]
        has_bias = any(name is not None and f"{module_of(name)}.bias" in weights for name in projections)
        config = DualEncoderConfig(
            vision_config=vision_config,
            text_config=text_config,
            vision_pooling=section.vision.pooling,
            text_pooling=section.text.pooling,
            vision_output=vision_output.to_dict(),
            text_output=text_output.to_dict(),
            eot_token_id=end_of_text_id(tokenizer),
            embedding_dim=section.embedding_dim,
            projection_bias=has_bias,
            initial_temperature=section.temperature.start,
            learn_temperature=section.temperature.learn,
            same_image=recipe.contrastive.same_image,
            same_caption=recipe.contrastive.same_caption,
        )
        tensors: dict[str, Tensor] = {}
        for name, tower, tower_config in (("vision", vision, vision_config), ("text", text, text_config)):
            tensors |= {
                f"{name}.{own}": tensor for own, tensor in tower_tensors(checkpoint, tower, tower_config).items()
            }
            tensors |= projection_tensors(
                checkpoint, tower, f"{name}_projection", section.embedding_dim, with_bias=has_bias
            )
        kept = {f"vision.{name}" for name in kept_names(vision_config, vision_output.unused)}
        kept |= {f"text.{name}" for name in kept_names(text_config, text_output.unused)}
        tensors = {name: tensor for name, tensor in tensors.items() if "_projection" in name or name in kept}
        scale = _scale_name(checkpoint)
        if scale is not None:
            checkpoint.used.add(scale)
        tensors["logit_scale"] = torch.tensor([-math.log(self._temperature(checkpoint))])
        square = build_image_processor(_IMAGENET, image_size=data.image_size, resize=data.resize)
        # Without a causal mask the program's padding is looked at, too.
        seen = {"padding": "max_length", "return_attention_mask": False}
        text_kwargs = None if section.text.attention == "causal" else seen
        processor = DualEncoderProcessor(square, tokenizer, max_length=data.max_length, text_kwargs=text_kwargs)
        # A mask that causal attention needs is made anew.
        checkpoint.used.update(name for name in weights if "mask" in name.rpartition(".")[2])
        return Parts(DualEncoderModel, config, tensors, processor)

    def numbers(self, checkpoint: Checkpoint, options: Options) -> dict[str, dict[str, float]]:
        loss = checkpoint.values.get("loss")
        return {"train": {"loss": float(loss)}} if isinstance(loss, (int, float)) else {}

    def _towers(self, checkpoint: Checkpoint) -> tuple[Tower, Tower]:
        patches = next((name for name, tensor in checkpoint.weights.items() if is_patches(tensor)), None)
        if patches is None:
            raise InputError(
                f"{checkpoint.path}: no vision transformer in it, whose first layer cuts images into patches"
            )
        prefix = patches.partition(".")[0] + "."
        others = [name for name in checkpoint.weights if not name.startswith(prefix)]
        words = max(
            (name for name in others if checkpoint.weights[name].dim() == 2 and "emb" in name and "pos" not in name),
            key=lambda name: checkpoint.weights[name].shape[0],
            default=None,
        )
        if words is None:
            raise InputError(
                f"{checkpoint.path}: no text transformer in it, which begins with the embeddings of words"
            )
        checkpoint.notes.clear()
        return find_tower(checkpoint, prefix), find_tower(checkpoint, words.partition(".")[0] + ".")

    def _temperature(self, checkpoint: Checkpoint) -> float:
        """What similarities are divided by: the learnt scalar (a logarithm, a factor or a divisor), or the setting."""
        name = _scale_name(checkpoint)
        if name is None:
            return float(checkpoint.settings.get("temperature", 0.07))
        value = float(checkpoint.weights[name])
        # CLIP learns log(1 / temperature), from -0 for 1 to 4.6 for 0.01; below 0.5 stands the temperature itself.
        if value > 5:
            return 1 / value
        return math.exp(-value) if value >= 0.5 or value < 0 else value


def _scale_name(checkpoint: Checkpoint) -> str | None:
    return next(
        (
            name
            for name, tensor in checkpoint.weights.items()
            if tensor.numel() == 1 and tensor.is_floating_point() and "." not in name.strip(".")
        ),
        None,
    )


def _rows(tensor: Tensor) -> int:
    """Of a table of positions or words, whatever axes stand before it."""
    return int(tensor.shape[-2])


def _vision_config(section: Any, image_size: ImageSize, *, with_class: bool) -> PreTrainedConfig:
    values = {
        "image_size": image_size,
        "patch_size": section.patch_size,
        "hidden_size": section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "intermediate_size": round(section.mlp_ratio * section.width),
        "layer_norm_eps": _NORM_EPS,
        "hidden_act": "gelu",
    }
    return ViTConfig(**values) if with_class else SiglipVisionConfig(**values)


def _text_config(section: Any, vocab_size: int, length: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    ids = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": end_of_text_id(tokenizer)}
    values = {
        "vocab_size": vocab_size,
        "hidden_size": section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "intermediate_size": round(section.mlp_ratio * section.width),
        "max_position_embeddings": length,
        "layer_norm_eps": _NORM_EPS,
        "hidden_act": "gelu",
        **{f"{name}_token_id": token for name, token in ids.items()},
    }
    return CLIPTextConfig(**values) if section.attention == "causal" else SiglipTextConfig(**values)


def _tokenizer(checkpoint: Checkpoint, options: Options, rows: int, length: int) -> PreTrainedTokenizerBase:
    """The user's tokenizer, the checkpoint's own, or CLIP's where the vocabulary is as large."""
    saved = checkpoint.values.get("vocab") or checkpoint.values.get("tokenizer")
    if options.tokenizer is not None or not saved:
        name = options.tokenizer or (_CLIP_TOKENIZER if rows == _CLIP_VOCABULARY else None)
        if name is None:
            raise InputError(f"{checkpoint.path}: no tokenizer in it; name that of its {rows} words with --tokenizer")
        tokenizer = load_tokenizer(name)
        checkpoint.notes.append(f"tokenizer of {name}")
    elif isinstance(saved, dict):
        tokenizer = _word_tokenizer({str(word): int(number) for word, number in saved.items()}, length)
        checkpoint.notes.append(f"a tokenizer of the checkpoint's {len(saved)} words")
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(str(saved)), model_max_length=length)
    if len(tokenizer) > rows:
        raise InputError(
            f"{checkpoint.path}: its text transformer knows {rows} tokens, the tokenizer has {len(tokenizer)}; name "
            "another with --tokenizer"
        )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _word_tokenizer(vocabulary: dict[str, int], length: int) -> PreTrainedTokenizerBase:
    """Lower-case words between blanks, as a vocabulary of words means."""
    unknown = next((word for word in vocabulary if "unk" in word.lower()), None)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or next(iter(vocabulary))))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        f"{role}_token": next((word for word in vocabulary if part in word.lower() and word[0] in "<["), None)
        for role, part in (("pad", "pad"), ("eos", "end"), ("bos", "start"))
    }
    given = {name: word for name, word in special.items() if word is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        model_max_length=length,
        **{"pad_token": next(iter(vocabulary)), **given},
    )
