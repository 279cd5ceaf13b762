from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from mmhf.features.parts import VISION, FeaturePart
from mmhf.models.prototypes.configuration_prototypes import PrototypeConfig
from mmhf.models.tower import TOWER, TowerModel


class PrototypeModel(TowerModel):
    config_class = PrototypeConfig
    parts = {"vision": TOWER, "head": ("projection.", "prototypes")}

    def __init__(self, config: PrototypeConfig, vision: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.vision_output = self._describe_tower("vision", config.vision_pooling)
        self.vision = self._tower("vision", vision, self.vision_output)
        self.projection = nn.Linear(self.vision_output.width, config.width)
        self.prototypes = nn.Parameter(torch.zeros(config.num_labels, config.width))
        self.post_init()

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        return (VISION,)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        image_hidden: Tensor | None = None,
    ) -> ImageClassifierOutput:
        if image_hidden is not None:
            image_features = self.resumed_image_features(image_hidden)
        elif image_features is None:
            image_features = self.image_features(pixel_values)
        logits = -(self.projection(image_features)[:, None] - self.prototypes).square().sum(-1)
        loss = None
        if labels is not None:
            count = num_items_in_batch or (labels != -100).sum()
            loss = functional.cross_entropy(logits, labels, reduction="sum") / count
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PrototypeModel):
            init.normal_(module.prototypes)
