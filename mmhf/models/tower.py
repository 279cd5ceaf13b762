"""The base of all families: encoders ("towers") under one roof, with new layers behind them.

Depends on torch, transformers, timm and what `encoders` depends on, so that a release can carry this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mmhf.features.parts import HasFeatureParts
from mmhf.models.classification_loss import ClassificationLoss
from mmhf.models.encoders import (
    EncoderOutput,
    describe_text,
    describe_vision,
    drop_unused,
    fresh_encoder,
    pool_vision,
    run_vision,
)
from mmhf.models.layer_groups import layer_groups

TOWER: tuple[str, ...] = ()
"""Marks an encoder among a family's `parts`."""
_DESCRIBE: dict[str, Callable[[PreTrainedConfig, str], EncoderOutput]] = {
    "vision": describe_vision,
    "text": describe_text,
}


class TowerModel(HasFeatureParts, PreTrainedModel):
    """A model of one or more encoders and new layers.

    A family says what it is made of, in the order of the data; from that come `parameter_groups()` and gradient
    checkpointing.

    Attributes:
        parts (`Mapping[str, tuple[str, ...]]`): `TOWER` for an attribute that holds an encoder (one that is None, or
            no model, is left out); else a parameter group of new layers → how the names of its parameters begin.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # Trainer passes `num_items_in_batch`, so that accumulated batches weigh each row alike.
    accepts_loss_kwargs = True

    vision_output: EncoderOutput

    def encoders(self) -> dict[str, PreTrainedModel]:
        """The towers that there are, by name."""
        children = dict(self.named_children())
        towers = {name: children.get(name) for name, prefixes in self.parts.items() if prefixes == TOWER}
        return {name: module for name, module in towers.items() if isinstance(module, PreTrainedModel)}

    def parameter_groups(self) -> dict[str, list[str]]:
        """Each tower's by layer (`vision.stages.0`) and the new layers', in the order of `parts`; none is empty."""
        groups: dict[str, list[str]] = {}
        encoders, own = self.encoders(), [name for name, _ in self.named_parameters()]
        for part, prefixes in self.parts.items():
            if part in encoders:
                for group, names in layer_groups(encoders[part]).items():
                    groups[f"{part}.{group}"] = [f"{part}.{name}" for name in names]
            elif prefixes != TOWER:
                groups[part] = [name for name in own if name.startswith(prefixes)]
        return {group: names for group, names in groups.items() if names}

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Pooled output of the image encoder: (B, 3, H, W) → (B, vision width)."""
        output = run_vision(self.vision, pixel_values, self.config.vision_pooling)
        return pool_vision(output, self.config.vision_pooling, self.vision_output)

    def _describe_tower(self, name: str, pooling: str) -> EncoderOutput:
        """How the output of an encoder is read: from the config, or found and written into it."""
        values = vars(self.config)
        if values[f"{name}_output"] is None:
            described = _DESCRIBE[name](values[f"{name}_config"], pooling)
            setattr(self.config, f"{name}_output", described.to_dict())
        return EncoderOutput.from_dict(vars(self.config)[f"{name}_output"])

    def _tower(self, name: str, encoder: PreTrainedModel | None, output: EncoderOutput) -> PreTrainedModel:
        """An encoder, the given one or a fresh one, without what its pooled output does not need."""
        tower = fresh_encoder(vars(self.config)[f"{name}_config"]) if encoder is None else encoder
        drop_unused(tower, output.unused)
        return tower

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # transformers would set its own layers only, and leave timm's encoder as it is.
        for encoder in self.encoders().values():
            if encoder.supports_gradient_checkpointing:
                encoder._set_gradient_checkpointing(enable, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """New layers as transformers starts them; the encoders start their own."""
        super()._init_weights(module)
        if isinstance(module, ClassificationLoss):
            module.restore_buffers()
