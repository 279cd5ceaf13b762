from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmhf.models.tower_config import TowerConfig


class PrototypeConfig(TowerConfig):
    model_type = "toy_prototypes"
    sub_configs = {"vision_config": AutoConfig}

    def __init__(self, vision_config: Any = None, *, width: int = 8, vision_pooling: str = "avg", **kwargs: Any):
        if not isinstance(vision_config, PreTrainedConfig):
            values = vision_config or {"model_type": "timm_wrapper"}
            vision_config = AutoConfig.for_model(**values)
        self.vision_config = vision_config
        self.vision_output = kwargs.pop("vision_output", None)
        self.vision_pooling = vision_pooling
        self.width = width
        self.calibration_temperature = 1.0
        self.abstain_below = None
        super().__init__(**kwargs)
