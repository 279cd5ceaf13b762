"""The base of all families: encoders ("towers") under one roof, with new layers behind them.

Depends on torch, transformers, timm and what `encoders` depends on, so that a release can carry this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from mmhf.features.parts import HasFeatureParts
from mmhf.models.classification_loss import TargetLoss
from mmhf.models.encoders import (
    EncoderOutput,
    describe_text,
    describe_vision,
    drop_unused,
    fresh_encoder,
    laid_out,
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


class TowerOutput(ModelOutput):
    """Base of outputs that hold whole outputs of encoders."""

    def to_tuple(self) -> tuple[Any, ...]:
        """All that is not None; outputs of encoders as tuples, too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def encoder_output(output: Any, pooled: Tensor | None = None) -> BaseModelOutputWithPooling:
    """An encoder's output of any class as the one that all families give.

    Args:
        output: Of any encoder.
        pooled (`Tensor`, *optional*): Stands for its own `pooler_output`.
    """
    return BaseModelOutputWithPooling(
        last_hidden_state=output.last_hidden_state,
        pooler_output=output.get("pooler_output") if pooled is None else pooled,
        hidden_states=output.get("hidden_states"),
        attentions=output.get("attentions"),
    )


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
    pixel_mean: Tensor | None
    pixel_std: Tensor | None

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.register_buffer("pixel_mean", None, persistent=False)
        self.register_buffer("pixel_std", None, persistent=False)

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

    def normalise_pixels(self, mean: Tensor, std: Tensor) -> None:
        """Take images as uint8 pixels, too, and normalise them first. Nothing of it is saved.

        Args:
            mean, std (`Tensor`): (3, 1, 1), of pixels from 0 to 255.
        """
        for name, value in (("pixel_mean", mean), ("pixel_std", std)):
            self.register_buffer(name, value.to(self.device), persistent=False)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """What the new layers read of the image encoder: (B, 3, H, W) → (B, vision width), or a grid of features."""
        return self._read_image(self._run_vision(pixel_values))

    def _run_vision(self, pixel_values: Tensor, **asked: bool) -> Any:
        """The image encoder's own output."""
        images = laid_out(pixel_values, self.vision_output)
        if images.dtype == torch.uint8 and self.pixel_mean is not None and self.pixel_std is not None:
            images = torch.sub(images, self.pixel_mean).div_(self.pixel_std)
        return run_vision(self.vision, images, self.config.vision_pooling, **asked)

    def _read_image(self, output: Any) -> Tensor:
        """What the new layers read of that output."""
        return pool_vision(output, self.config.vision_pooling, self.vision_output)

    def _seen(
        self, pixel_values: Tensor | None, image_features: Tensor | None, image_hidden: Tensor | None, **asked: bool
    ) -> tuple[Tensor | None, Any]:
        """What the new layers read of images, or of the features given in their place; None where there is neither.

        Returns:
            `tuple`: that, and the image encoder's own output where it was run whole.
        """
        if image_hidden is not None:
            return self.resumed_image_features(image_hidden), None
        if image_features is not None or pixel_values is None:
            return image_features, None
        output = self._run_vision(pixel_values, **asked)
        return self._read_image(output), output

    def _asked(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, bool]:
        """What a call, or else the config, asks of the encoders beside their last states; empty = nothing."""
        config = self.config
        hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = config.output_attentions if output_attentions is None else output_attentions
        wanted = {"output_hidden_states": bool(hidden), "output_attentions": bool(attentions)}
        return {name: True for name, is_wanted in wanted.items() if is_wanted}

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
        if isinstance(module, TargetLoss):
            module.restore_buffers()
