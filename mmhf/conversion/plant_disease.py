"""`resnet50_best.pth` of the plant-disease program, and any state dict of a torchvision classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmhf.conversion.checkpoint import Checkpoint, Linear, listed
from mmhf.conversion.converting import Options, Parts, Predecessor, class_names, number_of
from mmhf.conversion.encoders import FoundEncoder, check_chain, find_image_encoder, kept_of, prefixed, skeleton
from mmhf.conversion.fusion_layers import both_classes
from mmhf.errors import InputError
from mmhf.models.backbones import load_encoder_config
from mmhf.models.building import image_processor_of
from mmhf.models.image_classifier.building import build_image_classifier_config
from mmhf.models.image_classifier.modeling_image_classifier import BackboneForImageClassification
from mmhf.recipe import ResolvedRecipe

_BACKBONES = {
    "resnet50": "torchvision/resnet50",
    "efficientnet_b0": "torchvision/efficientnet_b0",
    "mobilenetv3": "torchvision/mobilenet_v3_small",
    "mobilenet_v3_small": "torchvision/mobilenet_v3_small",
}
# The activation of the head is its backbone's own.
_ACTIVATIONS = {"efficientnet": "silu", "mobilenet_v3": "hardswish"}
_STAGE = {"schedule": "cosine", "min_lr": 1e-7}


class PlantDisease(Predecessor):
    name = "plant-disease"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        return "model_name" in checkpoint.values or any(
            name.startswith(("conv1.", "features.", "layer1.", "conv_proj.", "conv_stem."))
            for name in checkpoint.weights
        )

    def recipe(self, checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
        vision, head, pooling = self._find(checkpoint, options)
        count = checkpoint.values.get("num_classes", max(head[-1].outputs, 2))
        if count != max(head[-1].outputs, 2):
            raise InputError(
                f"{checkpoint.path}: it says {count} classes, but {head[-1].weight} tells {head[-1].outputs} apart"
            )
        labels = class_names(checkpoint, count, options)
        activation = next((value for part, value in _ACTIVATIONS.items() if part in vision.backbone), "relu")
        hidden = head[0].outputs if len(head) == 2 else None
        return {
            "task": "image-classification",
            "model": {
                "vision": {"backbone": vision.backbone, "pooling": pooling},
                "head": {"hidden_dim": hidden, "dropout": [0.3, 0.15], "activation": activation},
            },
            "data": {
                "source": "image_folder",
                "path": "data/plant_disease",
                "labels": {name: name for name in labels},
                "image_size": 224,
            },
            "training": {
                "per_device_train_batch_size": 32,
                "weight_decay": 1e-4,
                "max_grad_norm": 1.0,
                "metric_for_best_model": "f1_macro",
            },
            "loss": {"label_smoothing": 0.1},
            "stages": [{"name": "all", "epochs": 10, "learning_rate": {"vision": 1e-5, "head": 5e-5}, **_STAGE}],
        }

    def parts(self, checkpoint: Checkpoint, resolved: ResolvedRecipe, options: Options) -> Parts:
        recipe: Any = resolved.recipe
        vision, head, _ = self._find(checkpoint, options)
        labels = list(recipe.data.labels.values())
        config = build_image_classifier_config(recipe.model, label_names=labels)
        kept = kept_of(config.vision_config, (config.vision_output or {})["unused"], vision.names)
        checkpoint.used.update(vision.names.values())
        tensors = {**checkpoint.take(prefixed("vision.", kept)), **_head(checkpoint, head)}
        processor = image_processor_of(recipe.model.vision, recipe.data)
        return Parts(BackboneForImageClassification, config, tensors, processor)

    def numbers(self, checkpoint: Checkpoint, options: Options) -> dict[str, dict[str, float]]:
        f1 = number_of(checkpoint, "val_f1")
        return {} if f1 is None else {"validation": {"f1_macro": f1}}

    def _find(self, checkpoint: Checkpoint, options: Options) -> tuple[FoundEncoder, list[Linear], str]:
        """Its encoder, its one or two linear layers, and how the encoder is pooled."""
        checkpoint.notes.clear()
        name = checkpoint.values.get("model_name")
        backbone = options.vision or (_BACKBONES.get(str(name), f"torchvision/{name}") if name else None)
        vision = find_image_encoder(checkpoint, backbone)
        rest = Checkpoint(checkpoint.path, checkpoint.values, checkpoint.weights, set(vision.names.values()))
        own = _own_head(rest, vision)
        rest.used.update(own.values())
        head = [linear for group in rest.linears() for linear in group]
        if not 1 <= len(head) <= 2:
            found = listed([linear.weight for linear in head]) or "none"
            raise InputError(
                f"{checkpoint.path}: a head of one or two linear layers was expected behind {vision.backbone}, found "
                f"{found}"
            )
        check_chain(checkpoint, head, "head")
        checkpoint.notes.append(f"head: {', '.join(linear.weight for linear in head)}")
        vision.names.update({f"model.{name}": theirs for name, theirs in own.items()})
        with_class_token = vision.backbone.startswith("torchvision/vit_")
        return vision, head, "pooler" if own else "cls" if with_class_token else "avg"


def _own_head(checkpoint: Checkpoint, vision: FoundEncoder) -> dict[str, str]:
    """What torchvision's own head has before its last layer, where the checkpoint has kept it."""
    config = load_encoder_config(vision.backbone, pretrained=False, modality="image")
    shapes = {name.removeprefix("model."): tensor.shape for name, tensor in skeleton(config).state_dict().items()}
    known = {name.removeprefix("model.") for name in vision.names}
    own = {name: shape for name, shape in shapes.items() if name not in known}
    if not own:
        return {}
    found = checkpoint.locate(own)
    return found if found is not None and set(found) == set(own) else {}


def _head(checkpoint: Checkpoint, head: list[Linear]) -> dict[str, Tensor]:
    targets = ["head.1", "head.4"] if len(head) == 2 else ["head.1"]
    taken: dict[str, Tensor] = {}
    for linear, target in zip(head, targets, strict=True):
        taken |= checkpoint.take_linear(linear, target)
    return {name: both_classes(tensor) if name.startswith(targets[-1]) else tensor for name, tensor in taken.items()}
