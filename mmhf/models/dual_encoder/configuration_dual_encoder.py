"""Configuration of the dual encoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.sub_configs import SMALL_CLIP_TEXT, SMALL_VIT, sub_config
from mmhf.models.tower_config import TowerConfig


class DualEncoderConfig(TowerConfig):
    """Configuration of [`DualEncoderModel`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        text_config (`PreTrainedConfig` or `dict`, *optional*): Text encoder.
        vision_backbone, text_backbone (`str`, *optional*): Names of the encoders as a recipe gives them; None = made
            from scratch.
        vision_pooling (`str`): `cls`, `avg`, `max`, `concat`, `blocks`, `attention` or `pooler`.
        text_pooling (`str`): `eot`, `cls`, `mean`, `max`, `last_token`, `attention` or `pooler`.
        vision_output, text_output (`dict`, *optional*): [`EncoderOutput`] of each encoder; found when absent.
        vision_quantization, text_quantization (`dict`, *optional*): See [`TowerConfig`].
        eot_token_id (`int`, *optional*): The token that `eot` reads; absent, or not in a text = its last token.
        embedding_dim (`int`): Width of the space that both encoders are projected to.
        projection_bias (`bool`): Whether the projections add a vector.
        initial_temperature (`float`): What similarities are divided by at first, or always.
        learn_temperature (`bool`): Whether it trains.
        logit_bias (`float`, *optional*): What is added to the logits at first, for the sigmoid loss; it trains.
        loss (`str`): `softmax` or `sigmoid`, see [`Contrast`] for this and what follows.
        label_smoothing (`float`): Of the loss.
        same_image, same_caption (`str`): `negative`, `ignore` or `positive`.
        matryoshka (`list[int]`, *optional*): The sizes of the loss, ascending, the last of them `embedding_dim`; the
            first so many numbers of an embedding, brought to length 1, are then an embedding, too.
        matryoshka_weights (`list[float]`, *optional*): What each size counts in the loss; absent = all the same.
        initializer_range (`float`): Standard deviation of new weights.
        **kwargs: Those of [`TowerConfig`].
    """

    model_type = "mmhf_dual_encoder"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = [
        *("logits_per_image", "logits_per_text", "logit_scale", "logit_bias", "pooler_output"),
        *("text_model_output", "vision_model_output"),
    ]

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        vision_backbone: str | None = None,
        text_backbone: str | None = None,
        vision_pooling: str = "cls",
        text_pooling: str = "eot",
        vision_output: dict[str, Any] | None = None,
        text_output: dict[str, Any] | None = None,
        vision_quantization: dict[str, Any] | None = None,
        text_quantization: dict[str, Any] | None = None,
        eot_token_id: int | None = None,
        embedding_dim: int = 512,
        projection_bias: bool = False,
        initial_temperature: float = 0.07,
        learn_temperature: bool = True,
        logit_bias: float | None = None,
        loss: str = "softmax",
        label_smoothing: float = 0.0,
        same_image: str = "ignore",
        same_caption: str = "ignore",
        matryoshka: list[int] | None = None,
        matryoshka_weights: list[float] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if loss not in ("softmax", "sigmoid"):
            raise ValueError(f"unknown loss {loss!r}; choose softmax or sigmoid")
        if matryoshka and (matryoshka != sorted({*matryoshka, embedding_dim}) or matryoshka[0] < 1):
            raise ValueError(f"matryoshka {matryoshka}: sizes ascend, and the last is embedding_dim, {embedding_dim}")
        self.vision_config = sub_config(vision_config, default=SMALL_VIT)
        self.text_config = sub_config(text_config, default=SMALL_CLIP_TEXT)
        self.vision_backbone = vision_backbone
        self.text_backbone = text_backbone
        self.vision_pooling = vision_pooling
        self.text_pooling = text_pooling
        self.vision_output = vision_output
        self.text_output = text_output
        self.vision_quantization = vision_quantization
        self.text_quantization = text_quantization
        self.eot_token_id = eot_token_id
        self.embedding_dim = embedding_dim
        self.projection_bias = projection_bias
        self.initial_temperature = initial_temperature
        self.learn_temperature = learn_temperature
        self.logit_bias = logit_bias
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.same_image = same_image
        self.same_caption = same_caption
        self.matryoshka = matryoshka
        self.matryoshka_weights = matryoshka_weights
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
