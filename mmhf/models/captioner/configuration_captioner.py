"""Configuration of the prefix captioner."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.sub_configs import SMALL_CLIP_VISION, SMALL_QWEN, sub_config
from mmhf.models.tower_config import TowerConfig
from mmhf.recipe.prompt_template import PromptTemplate

PROJECTORS = ("mlp", "transformer")


class PrefixCaptionerConfig(TowerConfig):
    """Configuration of [`PrefixCaptionerForConditionalGeneration`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Image encoder; a timm encoder is a `timm_wrapper`.
        language_config (`PreTrainedConfig` or `dict`, *optional*): Causal language model.
        vision_backbone, language_backbone (`str`, *optional*): Their names as a recipe gives them.
        vision_quantization, language_quantization (`dict`, *optional*): See [`TowerConfig`].
        vision_features (`str`): `projected`, `patches`, `avg`, `max`, `concat`, `blocks`, `cls` or `pooler`.
        vision_output (`dict`, *optional*): [`EncoderOutput`] of the image encoder; found when absent.
        projector (`str`): `mlp` or `transformer`.
        prefix_length (`int`, *optional*): Tokens that stand for an image; absent, 10, or one a patch.
        projector_hidden_dims (`list[int]`, *optional*): Widths of the hidden layers of an `mlp`; default `[1024]`.
        projector_activation (`str`): Name of an activation that transformers knows.
        projector_dropout (`float`): Behind each hidden layer.
        projector_layers, projector_heads, projector_width (`int`): Of a `transformer`.
        projector_normalize (`bool`): A LayerNorm behind the projector.
        prompt_ids (`list[int]`, *optional*): Tokens between the image and its caption.
        prompt_template (`str`, *optional*): A prompt that names columns, in place of `prompt_ids`: each row has its
            own, see [`PromptTemplate`].
        prompt_missing (`str`, *optional*): What stands in it for a value that a row lacks.
        neighbours (`dict`, *optional*): What [`Neighbours`] is made with; absent, nothing is looked up.
        initializer_range (`float`): Standard deviation of new weights.
        **kwargs: Those of [`TowerConfig`].
    """

    model_type = "mmhf_prefix_captioner"
    sub_configs = {"vision_config": AutoConfig, "language_config": AutoConfig}
    # Trainer gathers the other outputs over the whole split.
    keys_to_ignore_at_inference = ["logits", "hidden_states", "attentions", "image_hidden_states"]

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        language_config: PreTrainedConfig | dict[str, Any] | None = None,
        *,
        vision_backbone: str | None = None,
        language_backbone: str | None = None,
        vision_quantization: dict[str, Any] | None = None,
        language_quantization: dict[str, Any] | None = None,
        vision_features: str = "projected",
        vision_output: dict[str, Any] | None = None,
        projector: str = "mlp",
        prefix_length: int | None = None,
        projector_hidden_dims: list[int] | None = None,
        projector_activation: str = "gelu",
        projector_dropout: float = 0.0,
        projector_layers: int = 4,
        projector_heads: int = 8,
        projector_width: int = 512,
        projector_normalize: bool = False,
        prompt_ids: list[int] | None = None,
        prompt_template: str | None = None,
        prompt_missing: str | None = None,
        neighbours: dict[str, Any] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if projector not in PROJECTORS:
            raise ValueError(f"unknown projector {projector!r}; choose from {', '.join(PROJECTORS)}")
        self.vision_config = sub_config(vision_config, default=SMALL_CLIP_VISION)
        self.language_config = sub_config(language_config, default=SMALL_QWEN)
        self.vision_backbone = vision_backbone
        self.language_backbone = language_backbone
        self.vision_quantization = vision_quantization
        self.language_quantization = language_quantization
        self.vision_features = vision_features
        self.vision_output = vision_output
        self.projector = projector
        self.prefix_length = prefix_length
        self.projector_hidden_dims = [1024] if projector_hidden_dims is None else list(projector_hidden_dims)
        self.projector_activation = projector_activation
        self.projector_dropout = projector_dropout
        self.projector_layers = projector_layers
        self.projector_heads = projector_heads
        self.projector_width = projector_width
        self.projector_normalize = projector_normalize
        self.prompt_ids = list(prompt_ids or [])
        self.prompt_template = prompt_template
        self.prompt_missing = prompt_missing
        self.neighbours = neighbours
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    def prompt_of_rows(self) -> PromptTemplate | None:
        """The prompt that names columns; None where all rows have the same one."""
        return None if self.prompt_template is None else PromptTemplate(self.prompt_template, self.prompt_missing)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The language model's, by the name that it has in transformers' own composite configs."""
        return self.language_config

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Config of the language model, whatever is asked for: texts are read and written by it."""
        return self.language_config.get_text_config(decoder=decoder, encoder=encoder)
