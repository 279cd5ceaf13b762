"""The text encoder behind a table of text embeddings: what a table says of it, and loading it again.

A model that is trained on such a table has no text encoder of its own. What it must know to read texts all the same is
a `TableEncoder`, in its config.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mmhf.errors import InputError
from mmhf.models.backbones import load_encoder
from mmhf.models.encoders import pool_text_output


@dataclass(frozen=True)
class TableEncoder:
    """What made a table of text embeddings.

    Attributes:
        backbone (`str`): The encoder's name as a recipe gives it.
        source (`str`): The same with the commit that it was at, where it came from the Hub.
        weights (`str`): Digest of its weights, see `weights_digest`.
        pooling (`str`): As in `pool_text`, or `pooler`.
        prefix (`str`): Put before each text, such as an instruction.
        max_length (`int`): Tokens after which a text is cut, prefix and special tokens included.
        width (`int`): Of an embedding.
    """

    backbone: str
    source: str
    weights: str
    pooling: str
    prefix: str
    max_length: int
    width: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TableEncoder:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def weights_digest(encoder: PreTrainedModel) -> str:
    """Digest over an encoder's parameters, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(encoder.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        content = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def load_table_encoder(table: TableEncoder, config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder that made a table, in eval mode, without gradients.

    Raises:
        `InputError`: it cannot be loaded, or has other weights by now.
    """
    where = f"texts that are in no table are read by {table.source}, which made this model's table of embeddings"
    try:
        encoder = load_encoder(table.source, config, pretrained=True)
    except InputError as error:
        raise type(error)(f"{where}; {error}") from error
    if weights_digest(encoder) != table.weights:
        raise InputError(f"{where}; its weights are others by now: bring those back")
    encoder.eval().requires_grad_(False)
    return encoder


@torch.no_grad()
def embed_tokens(encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Pooled output of a frozen text encoder: (B, T) → (B, width)."""
    output = encoder(input_ids=input_ids, attention_mask=attention_mask)
    return pool_text_output(output, attention_mask, pooling)
