"""torchvision's classifiers as image encoders, under torchvision's own names of weights and blocks.

Depends on torch, torchvision and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import (
    AlexNet,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
    VisionTransformer,
    get_model,
)
from torchvision.models.vgg import VGG
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

_POOLED = (DenseNet, MNASNet, MobileNetV2, ShuffleNetV2)
"""Models that take the mean in `forward`, without a module for it."""
_FEATURES = (AlexNet, ConvNeXt, EfficientNet, MobileNetV2, MobileNetV3, VGG)
_SEQUENCES: dict[type[nn.Module], tuple[str, ...]] = {
    ResNet: ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    ShuffleNetV2: ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    MNASNet: ("layers",),
}
# What torchvision itself numbers; the transitions between dense blocks belong to the block before them.
_BLOCK = re.compile(
    r"(?:encoder\.layers\.encoder_layer_(?P<layer>\d+)|features\.(?:denseblock|transition)(?P<dense>\d+)"
    r"|(?P<own>layer\d+|features\.\d+|stage\d+|conv5|layers\.\d+))\."
)


class TorchvisionConfig(PreTrainedConfig):
    """Configuration of [`TorchvisionEncoder`].

    Args:
        architecture (`str`): torchvision's name, such as `resnet50`.
        image_size (`int`): Side in pixels of the images that it was trained with; vision transformers take no other.
        image_mean, image_std (`list[float]`): By channel, of images in [0, 1].
        interpolation (`str`): How images were resized, as in [`PIL.Image.Resampling`].
        last_activation (`bool`): DenseNet: apply the ReLU that torchvision's `forward` has behind `features`.
    """

    model_type = "mmhf_torchvision"

    def __init__(
        self,
        architecture: str = "resnet18",
        *,
        image_size: int = 224,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        interpolation: str = "bilinear",
        last_activation: bool = True,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.image_size = image_size
        self.image_mean = list(image_mean or (0.485, 0.456, 0.406))
        self.image_std = list(image_std or (0.229, 0.224, 0.225))
        self.interpolation = interpolation
        self.last_activation = last_activation
        # By which the class token is told from the patches.
        self.patch_size = int(architecture.rpartition("_")[2]) if architecture.startswith("vit_") else None
        kwargs.pop("patch_size", None)
        super().__init__(**kwargs)


class TorchvisionEncoder(PreTrainedModel):
    """A classifier of torchvision without its last layer.

    Its parameters are named as torchvision names them, behind `model.`.

    Args:
        config ([`TorchvisionConfig`]): Which one.

    Raises:
        `ValueError`: torchvision has no such classifier, or one that does not end in a linear layer.
    """

    config_class = TorchvisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    base_model_prefix = ""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        options = {"image_size": config.image_size} if config.patch_size else {}
        model: nn.Module = get_model(config.architecture, weights=None, **options)
        if not isinstance(model, (*_FEATURES, *_SEQUENCES, DenseNet, SwinTransformer, VisionTransformer)):
            raise ValueError(f"{config.architecture} cannot be an encoder; choose another classifier")
        owner, _, leaf = last_layer(model).rpartition(".")
        model.get_submodule(owner).register_module(leaf, nn.Identity())
        self.model: Any = model
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        do_pooling: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Run the encoder.

        Args:
            pixel_values (`Tensor`): (B, 3, H, W), normalised.
            do_pooling (`bool`): Also what the classifier's last layer would read, as `pooler_output` (B, width).
            output_hidden_states (`bool`, *optional*): Also the output of each block, with axes as of the last.
            output_attentions (`bool`, *optional*): torchvision gives none.
            return_dict (`bool`, *optional*): False = a tuple.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is (B, C, h, w), or (B, 1 + patches, width).

        Raises:
            `ValueError`: attentions were asked for.
        """
        if output_attentions:
            raise ValueError(f"{self.config.architecture} of torchvision gives no attentions; use another encoder")
        states = [pixel_values]
        for step in self._steps():
            # An activation may work in place, so that its output takes the place of its input.
            replaces = not output_hidden_states or isinstance(step, nn.ReLU)
            states.append(step(states.pop() if replaces else states[-1]))
        if isinstance(self.model, SwinTransformer):
            states[1:-1] = map(self.model.permute, states[1:-1])
        output = BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=self._pool(states[-1]) if do_pooling else None,
            hidden_states=tuple(states[1:]) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _steps(self) -> list[Callable[[Tensor], Tensor]]:
        """From pixels to the last features, in order."""
        model = self.model
        if isinstance(model, VisionTransformer):
            return [self._tokens, *model.encoder.layers, model.encoder.ln]
        if isinstance(model, SwinTransformer):
            return [*model.features, lambda hidden: model.permute(model.norm(hidden))]
        if isinstance(model, DenseNet):
            last = [functional.relu] if self.config.last_activation else []
            return [*model.features, *last]
        if isinstance(model, _FEATURES):
            return list(model.features)
        names = next(names for kind, names in _SEQUENCES.items() if isinstance(model, kind))
        return [model.get_submodule(name) for name in names]

    def _tokens(self, pixel_values: Tensor) -> Tensor:
        model = self.model
        patches = model._process_input(pixel_values)
        tokens = torch.cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedded: Tensor = model.encoder.dropout(tokens + model.encoder.pos_embedding)
        return embedded

    def _pool(self, hidden: Tensor) -> Tensor:
        """What torchvision's `forward` makes of the last features before its last layer."""
        model = self.model
        pooled: Tensor
        if isinstance(model, VisionTransformer):
            pooled = model.heads(hidden[:, 0])
        elif isinstance(model, SwinTransformer):
            pooled = model.head(model.flatten(model.avgpool(hidden)))
        elif isinstance(model, ConvNeXt):
            pooled = model.classifier(model.avgpool(hidden))
        else:
            mean = hidden.mean([2, 3]) if isinstance(model, _POOLED) else model.avgpool(hidden).flatten(1)
            pooled = model.fc(mean) if isinstance(model, (ResNet, ShuffleNetV2)) else model.classifier(mean)
        return pooled

    def _init_weights(self, module: nn.Module) -> None:
        """torchvision has started them."""


def last_layer(classifier: nn.Module) -> str:
    """Name of a classifier's last linear layer, which tells the classes apart."""
    names: list[str] = [name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def torchvision_groups(encoder: PreTrainedModel) -> dict[str, list[str]]:
    """Layer groups of a [`TorchvisionEncoder`], from input to output.

    Returns:
        `dict[str, list[str]]`: `stem`, then torchvision's own blocks (`layer1` … `layer4`, `features.0` …,
        `denseblock1` …, `layers.0` … of a vision transformer), then `final`; each parameter once, none is empty.
    """
    groups: dict[str, list[str]] = {"stem": []}
    final: list[str] = []
    block = ""
    modules = dict(encoder.named_modules())
    for name, _ in encoder.named_parameters():
        match = _BLOCK.match(name.removeprefix("model."))
        if match is None:
            (final if block else groups["stem"]).append(name)
            continue
        # VGG numbers each layer: a batch norm belongs to the convolution before it.
        owner = name.rpartition(".")[0]
        is_norm = isinstance(modules[owner], nn.BatchNorm2d) and f"model.{match[0]}" == f"{owner}."
        if not (is_norm and block):
            block = match["own"] or (f"denseblock{match['dense']}" if match["dense"] else f"layers.{match['layer']}")
        groups.setdefault(block, []).append(name)
    groups["final"] = final
    return {group: names for group, names in groups.items() if names}
