"""Configuration of the image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.classifier_config import ClassifierConfig
from mmhf.models.sub_configs import SMALL_VIT, sub_config


class BackboneForImageClassificationConfig(ClassifierConfig):
    """Configuration of [`BackboneForImageClassification`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        vision_backbone (`str`, *optional*): Name of the image encoder as a recipe gives it.
        vision_pooling (`str`): `avg`, `max`, `concat`, `blocks`, `cls` or `pooler`.
        vision_output (`dict`, *optional*): [`EncoderOutput`] of the encoder; found when absent.
        vision_quantization (`dict`, *optional*): See [`TowerConfig`].
        head_hidden_dim (`int`, *optional*): Width of the head's hidden layer; absent = a linear classifier.
        head_dropout (`Sequence[float]`): Dropout before the hidden layer and before the last one; without a hidden
            layer the first counts.
        head_activation (`str`): Name of an activation that transformers knows.
        **kwargs: Those of [`ClassifierConfig`].
    """

    model_type = "mmhf_backbone"
    sub_configs = {"vision_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        vision_backbone: str | None = None,
        vision_pooling: str = "avg",
        vision_output: dict[str, Any] | None = None,
        vision_quantization: dict[str, Any] | None = None,
        head_hidden_dim: int | None = 512,
        head_dropout: Sequence[float] = (0.3, 0.15),
        head_activation: str = "relu",
        **kwargs: Any,
    ) -> None:
        if len(head_dropout) != 2:
            raise ValueError(f"head_dropout: expected two numbers, before each layer of the head, got {head_dropout}")
        self.vision_config = sub_config(vision_config, default=SMALL_VIT)
        self.vision_backbone = vision_backbone
        self.vision_pooling = vision_pooling
        self.vision_output = vision_output
        self.vision_quantization = vision_quantization
        self.head_hidden_dim = head_hidden_dim
        self.head_dropout = list(head_dropout)
        self.head_activation = head_activation
        kwargs.setdefault("problem_type", "single_label_classification")
        super().__init__(**kwargs)
