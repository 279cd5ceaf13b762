"""The layers between the encoders and the classifier: projections, stand-ins for what is missing, fusion."""

from __future__ import annotations

from collections.abc import Sequence

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
    """From an encoder's pooled output to the common space, (B, width) → (B, D): hidden layers and a linear one."""
    if not hidden_dims:
        return nn.Linear(width, embedding_dim)
    return nn.Sequential(
        *hidden_layers([width, *hidden_dims], activation, dropout), nn.Linear(hidden_dims[-1], embedding_dim)
    )


class Fusion(nn.Module):
    """Fuse two embeddings of width D and pass them through the hidden layers.

    `concat_mlp`: [v; t] (2D). `product_difference`: [v; t; v·t; |v − t|] (4D). `weighted_sum`: softmax(w)·(v, t) (D).
    `gated`: g·v + (1 − g)·t with g = sigmoid(W[v; t] + b) per dimension (D). An embedding that is missing has been
    replaced by then, see `fill`.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.strategy = config.strategy
        width = config.embedding_dim
        if self.strategy == "weighted_sum":
            self.modality_weights = nn.Parameter(torch.zeros(2))
        elif self.strategy == "gated":
            self.gate = nn.Linear(2 * width, width)
        self.stand_ins = nn.Parameter(torch.zeros(2, width)) if config.stand_in == "learnt" else None
        widths = [{"concat_mlp": 2, "product_difference": 4}.get(self.strategy, 1) * width, *config.hidden_dims]
        if config.hidden_dims:
            self.hidden = nn.Sequential(*hidden_layers(widths, config.activation, config.dropout))
        else:
            self.hidden = nn.Sequential(
                nn.Dropout(config.dropout[0] if isinstance(config.dropout, Sequence) else config.dropout)
            )
        self.output_width = widths[-1]

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """(B, D) and (B, D) → (B, output_width)."""
        fused: Tensor = self.hidden(self.fuse(image_embeds, text_embeds))
        return fused

    def fuse(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The strategy alone: (B, D) and (B, D) → (B, D), (B, 2D) or (B, 4D)."""
        if self.strategy == "weighted_sum":
            image_share, text_share = self.modality_weights.softmax(dim=0)
            mixed: Tensor = image_share * image_embeds + text_share * text_embeds
            return mixed
        both = torch.cat([image_embeds, text_embeds], dim=-1)
        if self.strategy == "gated":
            gate: Tensor = self.gate(both).sigmoid()
            return gate * image_embeds + (1 - gate) * text_embeds
        if self.strategy == "product_difference":
            product, difference = image_embeds * text_embeds, (image_embeds - text_embeds).abs()
            return torch.cat([both, product, difference], dim=-1)
        return both

    def fill(self, embeds: Tensor, present: Tensor, *, modality: int) -> Tensor:
        """Put the stand-in, zero or learnt, in the place of embeddings that are missing.

        Args:
            embeds (`Tensor`): (B, D); what a missing row holds has no effect, and gets no gradient.
            present (`Tensor`): (B,), True where the row has this modality.
            modality (`int`): 0 = image, 1 = text.
        """
        stand_in = embeds.new_zeros(()) if self.stand_ins is None else self.stand_ins[modality]
        return torch.where(present[:, None], embeds, stand_in)
