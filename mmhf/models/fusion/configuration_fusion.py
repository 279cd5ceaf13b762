"""Configuration of the image-text fusion classifier."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

STRATEGIES = ("concat_mlp", "weighted_sum", "product_difference", "gated")


class FusionConfig(PreTrainedConfig):
    """Configuration of [`FusionForImageTextClassification`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        text_config (`PreTrainedConfig` or `dict`, *optional*): Text encoder.
        vision_backbone (`str`, *optional*): Name of the image encoder as a recipe gives it.
        text_backbone (`str`, *optional*): Name of the text encoder as a recipe gives it.
        vision_pooling (`str`): `avg`, `max`, `concat`, `cls` or `pooler`.
        text_pooling (`str`): `cls`, `mean`, `max`, `last_token` or `pooler`.
        vision_output, text_output (`dict`, *optional*): [`EncoderOutput`] of each encoder; found when absent.
        embedding_dim (`int`): Width of the space that both encoders are projected to.
        strategy (`str`): `concat_mlp`, `weighted_sum`, `product_difference` or `gated`.
        hidden_dims (`list[int]`, *optional*): Widths of the hidden layers; default `[256]`, may be empty.
        dropout (`float`): Dropout behind each hidden layer (behind the fused embedding when there is none).
        activation (`str`): Name of an activation that transformers knows.
        normalize (`bool`): L2-normalise both embeddings before they are fused.
        label_smoothing (`float`): Share of the target spread evenly over the classes.
        class_weights (`list[float]`, *optional*): Weight of each class in the loss.
        initializer_range (`float`): Standard deviation of new weights.
    """

    model_type = "mmhf_fusion"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = ["image_embeds", "text_embeds"]

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
        embedding_dim: int = 512,
        strategy: str = "concat_mlp",
        hidden_dims: list[int] | None = None,
        dropout: float = 0.5,
        activation: str = "relu",
        normalize: bool = False,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown fusion strategy {strategy!r}; choose from {', '.join(STRATEGIES)}")
        self.vision_config = _sub_config(vision_config, default="timm_wrapper")
        self.text_config = _sub_config(text_config, default="distilbert")
        self.vision_backbone = vision_backbone
        self.text_backbone = text_backbone
        self.vision_pooling = vision_pooling
        self.text_pooling = text_pooling
        self.vision_output = vision_output
        self.text_output = text_output
        self.embedding_dim = embedding_dim
        self.strategy = strategy
        self.hidden_dims = [256] if hidden_dims is None else list(hidden_dims)
        self.dropout = dropout
        self.activation = activation
        self.normalize = normalize
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else list(class_weights)
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(f"{len(self.class_weights)} class weights for {self.num_labels} labels")


def _sub_config(config: PreTrainedConfig | dict[str, Any] | None, *, default: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = config or {"model_type": default}
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)
