"""`checkpoint_epoch_N.pth` and `best_model.pth` of the CLIP program: a vision and a text transformer from scratch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from mmhf.conversion.checkpoint import Checkpoint, listed
from mmhf.conversion.converting import Options, Parts, Predecessor
from mmhf.conversion.encoders import kept_names, skeleton
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
_BLOCK = re.compile(r"(?P<stack>.*?)\.?\b(?P<index>\d+)\.(?P<rest>.+)")
_QKV = (
    ("query", "q_proj", "wq", "w_q", "q_linear", "to_q", "q"),
    ("key", "k_proj", "wk", "w_k", "k_linear", "to_k", "k"),
    ("value", "v_proj", "wv", "w_v", "v_linear", "to_v", "v"),
)


@dataclass
class Tower:
    """One of the two transformers of a checkpoint.

    Attributes:
        prefix (`str`): How the names of its tensors begin.
        width, layers, hidden (`int`): Sizes; `hidden` is the width inside its MLPs.
        blocks (`list[dict[str, str]]`): By block: what a tensor is (`query.weight`, `up.bias`, …) → its name.
        norm (`tuple[str, str]`): Names of weight and bias of the norm behind the blocks.
        projection (`str`, *optional*): Name of the matrix into the common space.
        tokens (`dict[str, str]`): `patches.weight`, `patches.bias`, `words`, `positions`, `class` → names.
    """

    prefix: str
    width: int
    layers: int
    hidden: int
    blocks: list[dict[str, str]]
    norm: tuple[str, str]
    projection: str | None
    tokens: dict[str, str]


class ClipFromScratch(Predecessor):
    name = "clip-from-scratch"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        has_patches = any(_is_patches(tensor) for tensor in checkpoint.weights.values())
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
        dimension = _output_width(checkpoint, vision)
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
        has_bias = any(name is not None and f"{_module(name)}.bias" in weights for name in projections)
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
                f"{name}.{own}": tensor for own, tensor in _tower_tensors(checkpoint, tower, tower_config).items()
            }
            tensors |= _projection(checkpoint, tower, f"{name}_projection", section.embedding_dim, with_bias=has_bias)
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
        patches = next((name for name, tensor in checkpoint.weights.items() if _is_patches(tensor)), None)
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
        return _tower(checkpoint, prefix), _tower(checkpoint, words.partition(".")[0] + ".")

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


def _is_patches(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[1] == 3 and tensor.shape[2] == tensor.shape[3]


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


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _tower(checkpoint: Checkpoint, prefix: str) -> Tower:
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith(prefix)}
    stacks: dict[str, dict[int, list[str]]] = {}
    outside: list[str] = []
    for name in weights:
        match = _BLOCK.fullmatch(name)
        if match is None:
            outside.append(name)
        else:
            stacks.setdefault(match["stack"], {}).setdefault(int(match["index"]), []).append(name)
    if not stacks:
        raise InputError(f"{checkpoint.path}: no numbered blocks below {prefix}")
    stack = max(stacks, key=lambda name: sum(len(names) for names in stacks[name].values()))
    outside += [
        name for other, blocks in stacks.items() if other != stack for names in blocks.values() for name in names
    ]
    blocks = [_block(checkpoint, names) for _, names in sorted(stacks[stack].items())]
    tokens, norms = {}, []
    for name in outside:
        tensor = weights[name]
        if _is_patches(tensor):
            tokens["patches.weight"], tokens["patches.bias"] = name, f"{_module(name)}.bias"
        elif tensor.dim() in (2, 3) and "pos" in name:
            tokens["positions"] = name
        elif "cls" in name or "class" in name:
            tokens["class"] = name
        elif tensor.dim() == 2 and "emb" in name:
            tokens["words"] = name
        elif tensor.dim() == 1 and name.endswith("weight") and f"{_module(name)}.bias" in weights:
            norms.append(_module(name))
    width = _width_of(weights, blocks[0])
    if "positions" not in tokens or len(norms) != 1:
        raise InputError(
            f"{checkpoint.path}: {prefix.rstrip('.')} has {len(norms)} norms outside its {len(blocks)} blocks"
            f"{'' if 'positions' in tokens else ' and no positions'}; expected are blocks that normalise before each "
            "layer, and one norm behind them"
        )
    matrices = [name for name in outside if weights[name].dim() == 2 and name not in tokens.values()]
    matrices += [
        name
        for name, tensor in checkpoint.weights.items()
        if tensor.dim() == 2
        and "proj" in name
        and prefix.strip("._").split("_")[0] in name
        and not name.startswith(prefix)
    ]
    checkpoint.notes.append(
        f"{prefix.rstrip('.')}: {len(blocks)} blocks of width {width}, projection {listed(matrices)}"
    )
    return Tower(
        prefix=prefix,
        width=width,
        layers=len(blocks),
        hidden=weights[blocks[0]["up.weight"]].shape[0],
        blocks=blocks,
        norm=(f"{norms[0]}.weight", f"{norms[0]}.bias"),
        projection=matrices[0] if matrices else None,
        tokens=tokens,
    )


def _width_of(weights: dict[str, Tensor], block: dict[str, str]) -> int:
    return int(weights[block["up.weight"]].shape[1])


def _block(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """What each tensor of a block is, by its shape, its place in the order, and for q, k and v its name."""
    weights = checkpoint.weights
    matrices = [name for name in names if weights[name].dim() == 2]
    norms = [name for name in names if weights[name].dim() == 1 and name.endswith("weight")]
    width = len(weights[norms[0]]) if norms else 0
    square = [name for name in matrices if tuple(weights[name].shape) == (width, width)]
    fused = [name for name in matrices if tuple(weights[name].shape) == (3 * width, width)]
    rest = [name for name in matrices if name not in (*square, *fused)]
    if len(norms) != 2 or len(rest) != 2 or (len(fused), len(square)) not in ((1, 1), (0, 4)):
        raise InputError(
            f"{checkpoint.path}: {names[0]}: attention, two norms and an MLP of two layers make a block; found "
            f"{len(matrices)} matrices and {len(norms)} norms"
        )
    found = {"norm1.weight": norms[0], "norm2.weight": norms[1], "up.weight": rest[0], "down.weight": rest[1]}
    if fused:
        found |= {"fused.weight": fused[0], "out.weight": square[0]}
    else:
        for role, words in zip(("query", "key", "value"), _QKV, strict=True):
            own = [name for name in square if any(part.lower() in words for part in name.split("."))]
            found[f"{role}.weight"] = own[0] if len(own) == 1 else square[("query", "key", "value").index(role)]
        named = {found[f"{role}.weight"] for role in ("query", "key", "value")}
        found["out.weight"] = next(name for name in square if name not in named)
    for role, name in list(found.items()):
        bias = name.removesuffix("weight") + "bias"
        if bias in weights:
            found[role.replace("weight", "bias")] = bias
    return found


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


def _tower_tensors(checkpoint: Checkpoint, tower: Tower, config: PreTrainedConfig) -> dict[str, Tensor]:
    """A tower under the names of transformers, which are found in a skeleton by their endings."""
    shapes = {name: tensor.shape for name, tensor in skeleton(config).state_dict().items()}
    taken: dict[str, Tensor] = {}

    def put(endings: Sequence[str], tensor: Tensor) -> None:
        name = next((own for ending in endings for own in shapes if f".{own}".endswith(f".{ending}")), None)
        if name is None:
            raise InputError(
                f"{checkpoint.path}: {tower.prefix.rstrip('.')}: no place for {endings[0]} in {config.model_type}"
            )
        taken[name] = tensor.reshape(shapes[name]) if tensor.numel() == shapes[name].numel() else tensor

    for role, name in tower.tokens.items():
        if name in checkpoint.weights:
            put(_TOKENS[role], checkpoint.weights[name])
            checkpoint.used.add(name)
    for part, name in zip(("weight", "bias"), tower.norm, strict=True):
        put([f"{norm}.{part}" for norm in _FINAL_NORMS], checkpoint.weights[name])
        checkpoint.used.add(name)
    for index, block in enumerate(tower.blocks):
        for role, tensor in _block_tensors(checkpoint, block, tower.width).items():
            module, _, part = role.partition(".")
            put([f"{index}.{inner}.{part}" for inner in _MODULES[module]], tensor)
        checkpoint.used.update(block.values())
    return taken


def _block_tensors(checkpoint: Checkpoint, block: dict[str, str], width: int) -> dict[str, Tensor]:
    """The tensors of a block by what they are; q, k and v apart, with biases of zero where there were none."""
    values = {role: checkpoint.weights[name] for role, name in block.items()}
    for part in ("weight", "bias"):
        fused = values.pop(f"fused.{part}", None)
        if fused is not None:
            values |= {
                f"{role}.{part}": own for role, own in zip(("query", "key", "value"), fused.split(width), strict=True)
            }
    for module in _MODULES:
        values.setdefault(f"{module}.bias", torch.zeros(len(values[f"{module}.weight"])))
    return values


def _projection(
    checkpoint: Checkpoint, tower: Tower, target: str, dimension: int, *, with_bias: bool
) -> dict[str, Tensor]:
    """A tower's matrix into the common space: a linear layer's, or one multiplied from the right, as CLIP's."""
    name = tower.projection
    if name is None:
        raise InputError(f"{checkpoint.path}: no projection of {tower.prefix.rstrip('.')} into the common space")
    matrix = checkpoint.weights[name]
    weight = matrix if name.endswith(".weight") else matrix.T.contiguous()
    checkpoint.used.add(name)
    taken = {f"{target}.weight": weight}
    bias = f"{_module(name)}.bias"
    if with_bias:
        taken[f"{target}.bias"] = checkpoint.weights.get(bias, torch.zeros(dimension))
        checkpoint.used.add(bias)
    return taken


def _output_width(checkpoint: Checkpoint, tower: Tower) -> int:
    if tower.projection is None:
        return tower.width
    matrix = checkpoint.weights[tower.projection]
    return int(matrix.shape[0] if tower.projection.endswith(".weight") else matrix.shape[1])


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


_TOKENS = {
    "patches.weight": ("projection.weight", "patch_embedding.weight"),
    "patches.bias": ("projection.bias", "patch_embedding.bias"),
    "class": ("cls_token",),
    "positions": ("position_embeddings", "position_embedding.weight"),
    "words": ("token_embedding.weight",),
}
_FINAL_NORMS = ("post_layernorm", "final_layer_norm", "layernorm")
_MODULES = {
    "norm1": ("layernorm_before", "layer_norm1"),
    "norm2": ("layernorm_after", "layer_norm2"),
    "query": ("attention.q_proj", "self_attn.q_proj", "attention.attention.query"),
    "key": ("attention.k_proj", "self_attn.k_proj", "attention.attention.key"),
    "value": ("attention.v_proj", "self_attn.v_proj", "attention.attention.value"),
    "out": ("attention.o_proj", "self_attn.out_proj", "attention.output.dense"),
    "up": ("mlp.fc1", "intermediate.dense"),
    "down": ("mlp.fc2", "output.dense"),
}
