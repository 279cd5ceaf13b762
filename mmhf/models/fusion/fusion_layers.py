"""Between the encoders and the classifier: rows that lack a modality, projections, stand-ins, fusion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmhf.models.fusion.configuration_fusion import FusionConfig


def hidden_layers(
    widths: Sequence[int], activation: str | Sequence[str], dropout: float | Sequence[float]
) -> list[nn.Module]:
    """Linear, activation and dropout from each of `widths` to the next; activations and dropouts one, or one a layer.

    Raises:
        `ValueError`: a list is not as long as there are hidden layers.
    """
    count = len(widths) - 1
    activations = [activation] * count if isinstance(activation, str) else list(activation)
    dropouts = list(dropout) if isinstance(dropout, Sequence) else [dropout] * count
    for what, values in (("activations", activations), ("dropouts", dropouts)):
        if len(values) != count:
            raise ValueError(f"{len(values)} {what} for {count} hidden layers")
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Linear(widths[index], widths[index + 1]),
            ACT2FN[activations[index]],
            nn.Dropout(dropouts[index]),
        ]
    return layers


def projection(
    width: int,
    embedding_dim: int,
    *,
    hidden_dims: Sequence[int],
    activation: str | Sequence[str],
    dropout: float | Sequence[float],
) -> nn.Module:
    """From an encoder's pooled output, or the vector of columns, to the common space, (B, width) → (B, D).

    These are hidden layers and a linear one.
    """
    if not hidden_dims:
        return nn.Linear(width, embedding_dim)
    return nn.Sequential(
        *hidden_layers([width, *hidden_dims], activation, dropout), nn.Linear(hidden_dims[-1], embedding_dim)
    )


class Fusion(nn.Module):
    """Fuse two or three embeddings of width D and pass them through the hidden layers.

    Of image and text: `concat_mlp`: [v; t] (2D). `product_difference`: [v; t; v·t; |v − t|] (4D). `weighted_sum`:
    softmax(w)·(v, t) (D). `gated`: g·v + (1 − g)·t with g = sigmoid(W[v; t] + b) per dimension (D). With columns as
    the third: products and differences are those of all three pairs (9D), and the gate is a softmax over the three.
    An embedding that is missing has been replaced by then, see `fill`.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.strategy = config.strategy
        width, count = config.embedding_dim, len(config.fused_modalities)
        if self.strategy == "weighted_sum":
            self.modality_weights = nn.Parameter(torch.zeros(count))
        elif self.strategy == "gated":
            self.gate = nn.Linear(count * width, width if count == 2 else count * width)
        self.stand_ins = nn.Parameter(torch.zeros(count, width)) if config.stand_in == "learnt" else None
        wider = {"concat_mlp": count, "product_difference": count * count}  # n and twice n (n - 1) / 2 pairs
        widths = [wider.get(self.strategy, 1) * width, *config.hidden_dims]
        if config.hidden_dims:
            self.hidden = nn.Sequential(*hidden_layers(widths, config.activation, config.dropout))
        else:
            self.hidden = nn.Sequential(
                nn.Dropout(config.dropout[0] if isinstance(config.dropout, Sequence) else config.dropout)
            )
        self.output_width = widths[-1]

    def forward(self, *embeds: Tensor) -> Tensor:
        """(B, D) of each modality → (B, output_width)."""
        fused: Tensor = self.hidden(self.fuse(*embeds))
        return fused

    def fuse(self, *embeds: Tensor) -> Tensor:
        """The strategy alone: (B, D) of each modality → (B, D), or a multiple of D."""
        if self.strategy == "weighted_sum":
            return _mixed(self.modality_weights.softmax(dim=0), embeds)
        side_by_side = torch.cat(embeds, dim=-1)
        if self.strategy == "gated" and len(embeds) == 2:
            gate: Tensor = self.gate(side_by_side).sigmoid()
            return _mixed((gate, 1 - gate), embeds)
        if self.strategy == "gated":
            gates: Tensor = self.gate(side_by_side).unflatten(-1, (len(embeds), -1))
            return _mixed(gates.softmax(dim=-2).unbind(dim=-2), embeds)
        if self.strategy == "product_difference":
            pairs = list(itertools.combinations(embeds, 2))
            products = [first * second for first, second in pairs]
            differences = [(first - second).abs() for first, second in pairs]
            return torch.cat([side_by_side, *products, *differences], dim=-1)
        return side_by_side

    def fill(self, embeds: Tensor, present: Tensor, *, modality: int) -> Tensor:
        """Put the stand-in, zero or learnt, in the place of embeddings that are missing.

        Args:
            embeds (`Tensor`): (B, D); what a missing row holds has no effect, and gets no gradient.
            present (`Tensor`): (B,), True where the row has this modality.
            modality (`int`): 0 = image, 1 = text, 2 = columns.
        """
        stand_in = embeds.new_zeros(()) if self.stand_ins is None else self.stand_ins[modality]
        return torch.where(present[:, None], embeds, stand_in)


def encode_present(
    encode: Callable[..., Tensor], present: Tensor | None, rows: Tensor | None, *inputs: Tensor
) -> Tensor:
    """Run an encoder on the rows that have its modality, so that the others cost nothing and leave batch-norm alone.

    Where fewer than two rows have it, all are run: batch-norm cannot learn from one, and processes that train together
    need a gradient from each.
    """
    if present is None:
        return encode(*inputs)
    rows = present.nonzero()[:, 0] if rows is None else rows
    if len(rows) == len(present) or len(rows) < 2:
        return encode(*inputs)
    features = encode(*(each[rows] for each in inputs))
    return features.new_zeros(present.shape[0], features.shape[-1]).index_copy(0, rows, features)


def zero_missing(features: Tensor, present: Tensor | None) -> Tensor:
    """Features as from `encode_present`: zeros in the rows that lack the modality."""
    if present is None:
        return features
    return features.masked_fill(present.view(-1, *[1] * (features.dim() - 1)) == 0, 0.0)


def _mixed(shares: Iterable[Tensor], embeds: Sequence[Tensor]) -> Tensor:
    first, *others = (share * each for share, each in zip(shares, embeds, strict=True))
    return sum(others, first)
