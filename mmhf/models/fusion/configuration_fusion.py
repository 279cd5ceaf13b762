"""Configuration of the image-text fusion classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.classifier_config import ClassifierConfig
from mmhf.models.sub_configs import SMALL_BERT, SMALL_VIT, sub_config

STRATEGIES = ("concat_mlp", "weighted_sum", "product_difference", "gated")
MODALITIES = ("image", "text", "columns")
STAND_INS = ("zero", "learnt")


class FusionConfig(ClassifierConfig):
    """Configuration of [`FusionForImageTextClassification`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        text_config (`PreTrainedConfig` or `dict`, *optional*): Text encoder.
        vision_backbone (`str`, *optional*): Name of the image encoder as a recipe gives it.
        text_backbone (`str`, *optional*): Name of the text encoder as a recipe gives it.
        vision_pooling (`str`): `avg`, `max`, `concat`, `blocks`, `cls` or `pooler`.
        text_pooling (`str`): `cls`, `mean`, `max`, `last_token` or `pooler`.
        vision_output, text_output (`dict`, *optional*): [`EncoderOutput`] of each encoder; found when absent.
        vision_quantization, text_quantization (`dict`, *optional*): See [`TowerConfig`].
        columns (`dict`, *optional*): [`ColumnFeatures`] of the table's columns that are a third modality.
        text_table (`dict`, *optional*): [`TableEncoder`] of a table of text embeddings that stands for the text
            encoder, which the model then does not hold.
        embedding_dim (`int`): Width of the space that all modalities are projected to.
        image_hidden_dims, text_hidden_dims, columns_hidden_dims (`list[int]`, *optional*): Widths of the hidden layers
            of each projection into that space; default none.
        image_activation, text_activation, columns_activation (`str` or `list[str]`): Names of activations that
            transformers knows, one for all hidden layers of the projection or one each.
        image_dropout, text_dropout, columns_dropout (`float` or `list[float]`): Dropout behind each hidden layer of
            the projection.
        strategy (`str`): `concat_mlp`, `weighted_sum`, `product_difference` or `gated`.
        hidden_dims (`list[int]`, *optional*): Widths of the hidden layers; default `[256]`, may be empty.
        dropout (`float` or `list[float]`): Dropout behind each hidden layer (behind the fused embedding when there is
            none).
        activation (`str` or `list[str]`): Names of activations that transformers knows.
        normalize (`bool`): L2-normalise the embeddings before they are fused.
        stand_in (`str`): What takes the place of a missing modality's embedding: `zero`, or `learnt`, a vector of its
            own.
        mask (`str`, *optional*): `image`, `text` or `columns`: this modality is never looked at.
        missing_modalities (`list[str]`, *optional*): Those that rows may lack, because training met such rows.
        auxiliary_weights (`dict[str, float]`, *optional*): `image`, `text`, `columns` → weight of the loss of a
            classifier that sees the embedding of this modality alone, while training.
        **kwargs: Those of [`ClassifierConfig`].
    """

    model_type = "mmhf_fusion"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = [
        *("image_embeds", "text_embeds", "columns_embeds", "modalities"),
        *("text_model_output", "vision_model_output"),
    ]

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        vision_backbone: str | None = None,
        text_backbone: str | None = None,
        vision_pooling: str = "avg",
        text_pooling: str = "cls",
        vision_output: dict[str, Any] | None = None,
        text_output: dict[str, Any] | None = None,
        vision_quantization: dict[str, Any] | None = None,
        text_quantization: dict[str, Any] | None = None,
        text_table: dict[str, Any] | None = None,
        columns: dict[str, Any] | None = None,
        embedding_dim: int = 512,
        image_hidden_dims: list[int] | None = None,
        image_activation: str | Sequence[str] = "relu",
        image_dropout: float | list[float] = 0.0,
        text_hidden_dims: list[int] | None = None,
        text_activation: str | Sequence[str] = "relu",
        text_dropout: float | list[float] = 0.0,
        columns_hidden_dims: list[int] | None = None,
        columns_activation: str | Sequence[str] = "relu",
        columns_dropout: float | list[float] = 0.0,
        strategy: str = "concat_mlp",
        hidden_dims: list[int] | None = None,
        dropout: float | list[float] = 0.5,
        activation: str | Sequence[str] = "relu",
        normalize: bool = False,
        stand_in: str = "zero",
        mask: str | None = None,
        missing_modalities: list[str] | None = None,
        auxiliary_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown fusion strategy {strategy!r}; choose from {', '.join(STRATEGIES)}")
        if stand_in not in STAND_INS or mask not in (None, *MODALITIES):
            raise ValueError(f"stand_in is one of {STAND_INS}, got {stand_in!r}; mask of {MODALITIES}, got {mask!r}")
        for name in (mask, *(auxiliary_weights or {})):
            if name == "columns" and columns is None:
                raise ValueError("mask and auxiliary_weights name columns, but there are none")
        self.vision_config = sub_config(vision_config, default=SMALL_VIT)
        self.text_config = sub_config(text_config, default=SMALL_BERT)
        self.vision_backbone = vision_backbone
        self.text_backbone = text_backbone
        self.vision_pooling = vision_pooling
        self.text_pooling = text_pooling
        self.vision_output = vision_output
        self.text_output = text_output
        self.vision_quantization = vision_quantization
        self.text_quantization = text_quantization
        self.text_table = text_table
        self.columns = columns
        self.embedding_dim = embedding_dim
        self.image_hidden_dims = list(image_hidden_dims or [])
        self.image_activation = image_activation
        self.image_dropout = image_dropout
        self.text_hidden_dims = list(text_hidden_dims or [])
        self.text_activation = text_activation
        self.text_dropout = text_dropout
        self.columns_hidden_dims = list(columns_hidden_dims or [])
        self.columns_activation = columns_activation
        self.columns_dropout = columns_dropout
        self.strategy = strategy
        self.hidden_dims = [256] if hidden_dims is None else list(hidden_dims)
        self.dropout = dropout
        self.activation = activation
        self.normalize = normalize
        self.stand_in = stand_in
        self.mask = mask
        self.missing_modalities = list(missing_modalities or [])
        self.auxiliary_weights = dict(auxiliary_weights or {})
        super().__init__(**kwargs)

    @property
    def fused_modalities(self) -> tuple[str, ...]:
        """What is fused, in order: `image`, `text`, and `columns` where there are any."""
        return MODALITIES if self.columns is not None else MODALITIES[:2]
