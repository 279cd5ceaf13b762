"""From image features to tokens of the language model's width.

Depends on torch and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mmhf.models.captioner.configuration_captioner import PrefixCaptionerConfig


class MlpProjector(nn.Module):
    """One vector to `prefix_length` tokens at once, or each patch to one token (as LLaVA does).

    Args:
        config ([`PrefixCaptionerConfig`]): Hidden layers, activation, dropout, prefix length.
        input_width (`int`): Width of the image features.
        output_width (`int`): Width of the language model.
    """

    def __init__(self, config: PrefixCaptionerConfig, input_width: int, output_width: int) -> None:
        super().__init__()
        self.output_width = output_width
        tokens = 1 if config.vision_features == "patches" else _prefix_length(config)
        widths = [input_width, *config.projector_hidden_dims]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), ACT2FN[config.projector_activation]]
            layers += [nn.Dropout(config.projector_dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], tokens * output_width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) → (B, prefix_length, output width); (B, N, width) → (B, N, output width)."""
        tokens: Tensor = self.layers(features).view(features.shape[0], -1, self.output_width)
        return tokens


class TransformerProjector(nn.Module):
    """Learned queries that look at the image features, as in ClipCap (https://arxiv.org/abs/2111.09734).

    Args:
        config ([`PrefixCaptionerConfig`]): Layers, heads, width, dropout, prefix length.
        input_width (`int`): Width of the image features.
        output_width (`int`): Width of the language model.
    """

    def __init__(self, config: PrefixCaptionerConfig, input_width: int, output_width: int) -> None:
        super().__init__()
        width = config.projector_width
        self.input = nn.Linear(input_width, width)
        self.queries = nn.Parameter(torch.zeros(_prefix_length(config), width))
        layer = nn.TransformerEncoderLayer(
            width,
            config.projector_heads,
            4 * width,
            dropout=config.projector_dropout,
            activation=ACT2FN[config.projector_activation],
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.projector_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.output = nn.Linear(width, output_width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) or (B, N, width) → (B, prefix_length, output width)."""
        tokens = self.input(features if features.dim() == 3 else features[:, None])
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        hidden = self.encoder(torch.cat([tokens, queries.to(tokens.dtype)], dim=1))
        prefix: Tensor = self.output(hidden[:, tokens.shape[1] :])
        return prefix


def build_projector(config: PrefixCaptionerConfig, input_width: int, output_width: int) -> nn.Module:
    """The projector that a config describes, with a LayerNorm behind it if `projector_normalize` says so."""
    projector = (MlpProjector if config.projector == "mlp" else TransformerProjector)(
        config, input_width, output_width
    )
    return nn.Sequential(projector, nn.LayerNorm(output_width)) if config.projector_normalize else projector


@torch.no_grad()
def start_among_embeddings(projector: nn.Module, embeddings: nn.Module) -> None:
    """Have a normalised projector start with outputs that have the mean and spread of token embeddings.

    A pretrained language model has seen nothing else: what is ten times as long as any word tells it little, and costs
    a loss above chance.

    Args:
        projector (`nn.Module`): As [`build_projector`] makes it; without a norm it is left as it is.
        embeddings (`nn.Module`): Of the language model's tokens, with a `weight` (V, D).
    """
    norm = projector[-1] if isinstance(projector, nn.Sequential) else None
    if isinstance(norm, nn.LayerNorm) and isinstance(embeddings.weight, Tensor):
        words = embeddings.weight.float()
        norm.weight.copy_(words.std(dim=0))
        norm.bias.copy_(words.mean(dim=0))


def _prefix_length(config: PrefixCaptionerConfig) -> int:
    if config.prefix_length is None:
        raise ValueError("config.prefix_length is open; complete_config finds it")
    return config.prefix_length
