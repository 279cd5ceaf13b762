"""The two transformers of the CLIP program's checkpoints: found by shapes and names, and given transformers' names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mmhf.conversion.checkpoint import Checkpoint, listed
from mmhf.conversion.encoders import skeleton
from mmhf.errors import InputError

_BLOCK = re.compile(r"(?P<stack>.*?)\.?\b(?P<index>\d+)\.(?P<rest>.+)")
_QKV = (
    ("query", "q_proj", "wq", "w_q", "q_linear", "to_q", "q"),
    ("key", "k_proj", "wk", "w_k", "k_linear", "to_k", "k"),
    ("value", "v_proj", "wv", "w_v", "v_linear", "to_v", "v"),
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

    def output_width(self, weights: Mapping[str, Tensor]) -> int:
        """Width of the common space."""
        if self.projection is None:
            return self.width
        matrix = weights[self.projection]
        return int(matrix.shape[0] if self.projection.endswith(".weight") else matrix.shape[1])


def is_patches(tensor: Tensor) -> bool:
    """Whether this layer cuts images into patches."""
    return tensor.dim() == 4 and tensor.shape[1] == 3 and tensor.shape[2] == tensor.shape[3]


def module_of(name: str) -> str:
    """The module that a tensor belongs to, by their names."""
    return name.rpartition(".")[0]


def find_tower(checkpoint: Checkpoint, prefix: str) -> Tower:
    """The transformer whose tensors' names begin with a prefix.

    Raises:
        InputError: There is none of the kind that the program builds.
    """
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith(prefix)}
    blocks, outside = _blocks(checkpoint, prefix, list(weights))
    tokens, norms = {}, []
    for name in outside:
        tensor = weights[name]
        if is_patches(tensor):
            tokens["patches.weight"], tokens["patches.bias"] = name, f"{module_of(name)}.bias"
        elif tensor.dim() in (2, 3) and "pos" in name:
            tokens["positions"] = name
        elif "cls" in name or "class" in name:
            tokens["class"] = name
        elif tensor.dim() == 2 and "emb" in name:
            tokens["words"] = name
        elif tensor.dim() == 1 and name.endswith("weight") and f"{module_of(name)}.bias" in weights:
            norms.append(module_of(name))
    width = int(weights[blocks[0]["up.weight"]].shape[1])
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


def _blocks(checkpoint: Checkpoint, prefix: str, names: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """The blocks of the tower below a prefix, in order, and the names of what is in none of them."""
    stacks: dict[str, dict[int, list[str]]] = {}
    outside: list[str] = []
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match is None:
            outside.append(name)
        else:
            stacks.setdefault(match["stack"], {}).setdefault(int(match["index"]), []).append(name)
    if not stacks:
        raise InputError(f"{checkpoint.path}: no numbered blocks below {prefix}")
    stack = max(stacks, key=lambda name: sum(len(members) for members in stacks[name].values()))
    outside += [
        name for other, blocks in stacks.items() if other != stack for names in blocks.values() for name in names
    ]
    return [_block(checkpoint, members) for _, members in sorted(stacks[stack].items())], outside


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


def tower_tensors(checkpoint: Checkpoint, tower: Tower, config: PreTrainedConfig) -> dict[str, Tensor]:
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


def projection_tensors(
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
    bias = f"{module_of(name)}.bias"
    if with_bias:
        taken[f"{target}.bias"] = checkpoint.weights.get(bias, torch.zeros(dimension))
        checkpoint.used.add(bias)
    return taken
