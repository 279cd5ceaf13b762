"""Images in their own shape (NaFlex): as sequences of patches, so that one batch holds panoramas and portraits.

Between image processor and encoder such a batch is one tensor, as images of one shape are: (B, N, 3 P² + 1) holds N
patches of each image, line by line, each flattened as (P, P, 3), with its mark behind it. So whatever stores, splits
or sends images need not know of it.

Depends on torch, timm and transformers only, so that a release can carry this file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import BatchFeature, PreTrainedModel, Siglip2ImageProcessor
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip2.image_processing_siglip2 import (
    convert_image_to_patches,
    get_image_size_for_max_num_patches,
)
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

SIGLIP2 = "siglip2_vision_model"
_CHECKS_SWITCH = "TRANSFORMERS_DISABLE_TORCH_CHECK"
_PADDING, _PATCH, _FIRST_OF_ROW = 0, 1, 2
"""Marks of patches. Rows and columns follow from them, and every floating-point type holds them exactly."""


class NaflexImageProcessor(Siglip2ImageProcessor):
    """Scales each image, proportions kept, to as many patches as fit, and gives them with their marks as one tensor.

    Sizes, patches and padding are [`Siglip2ImageProcessor`]'s: sides are rounded up to whole patches, and every image
    is padded to `max_num_patches`.

    Args:
        patch_size (`int`): Side of a patch in pixels.
        max_num_patches (`int`): Most patches of an image.
        kwargs: As of every image processor: `image_mean`, `image_std`, `resample`, ...
    """

    model_input_names = ["pixel_values"]

    def shrunk(self, pixels: Tensor) -> Tensor:
        """A picture (3, H, W) as it will be scaled, where it becomes smaller; else as it is. Scaled anew, it stays."""
        given = pixels.shape[1:]
        height, width = get_image_size_for_max_num_patches(given[0], given[1], self.patch_size, self.max_num_patches)
        if height * width >= given.numel():
            return pixels
        scaled: Tensor = self.resize(pixels, SizeDict(height=height, width=width), resample=self.resample)
        return scaled

    def _preprocess(self, images: list[Tensor], **options: Any) -> BatchFeature:  # type: ignore[override]
        made = super()._preprocess(images, **{**options, "return_tensors": "pt"})
        patches, shapes = made["pixel_values"], made["spatial_shapes"]
        place, width = torch.arange(patches.shape[1]), shapes[:, 1:]
        marks = torch.where(place % width == 0, _FIRST_OF_ROW, _PATCH)
        marks = marks.masked_fill(place >= shapes.prod(dim=1, keepdim=True), _PADDING)
        pixel_values = torch.cat([patches, marks[..., None].to(patches.dtype)], dim=-1)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=options.get("return_tensors"))


class PatchSequences(NamedTuple):
    """What [`NaflexImageProcessor`] gives, taken apart.

    Attributes:
        patches (`Tensor`): (B, N, 3 P²).
        marks (`Tensor`): (B, N).
    """

    patches: Tensor
    marks: Tensor

    @classmethod
    def of(cls, pixel_values: Tensor) -> PatchSequences:
        """From (B, N, 3 P² + 1)."""
        return cls(pixel_values[..., :-1], pixel_values[..., -1].round().to(torch.int64))

    @property
    def mask(self) -> Tensor:
        """(B, N), true at patches and false at padding."""
        return self.marks != _PADDING

    def shapes(self) -> Tensor:
        """(B, 2): height and width of each image, in patches."""
        height = (self.marks == _FIRST_OF_ROW).sum(dim=1)
        return torch.stack([height, self.mask.sum(dim=1) // height], dim=1)

    def coordinates(self) -> Tensor:
        """(B, N, 2): row and column of each patch in its image; 0 at padding."""
        place = torch.arange(self.marks.shape[1], device=self.marks.device).expand_as(self.marks)
        width = self.shapes()[:, 1:]
        return torch.stack([place // width, place % width], dim=-1) * self.mask[..., None]


@dataclass
class PatchesOutput(BaseModelOutputWithPooling):
    """An encoder's output for sequences of patches.

    Attributes:
        patch_mask (`Tensor`): (B, N), true at patches and false at padding; class and register tokens are not in it.
    """

    patch_mask: Tensor | None = None


def sequence_patch_size(encoder: PreTrainedModel) -> int | None:
    """Side in pixels of the patches that an encoder takes in sequences of any shape; None where it takes none."""
    if encoder.config.model_type == SIGLIP2:
        return int(encoder.config.patch_size)
    model: Any = encoder.timm_model if isinstance(encoder, TimmWrapperModel) else None
    if not isinstance(model, NaFlexVit):
        return None
    embeds: Any = model.embeds
    height, width = embeds.patch_size
    return int(height) if embeds.is_linear and embeds.channels_last and height == width else None


def run_on_sequences(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str, **asked: bool) -> PatchesOutput:
    """Run an image encoder on sequences of patches.

    Args:
        encoder (`PreTrainedModel`): One with a `sequence_patch_size`.
        pixel_values (`Tensor`): (B, N, 3 P² + 1), of [`NaflexImageProcessor`].
        pooling (`str`): As in `run_vision`.
        asked (`bool`): As in `run_vision`.

    Raises:
        `ValueError`: the encoder takes images of one shape only.
    """
    if sequence_patch_size(encoder) is None:
        raise ValueError(f"{encoder.config.model_type}: the encoder takes no images in their own shape")
    sequences = PatchSequences.of(pixel_values)
    if encoder.config.model_type == SIGLIP2:
        output = encoder(
            pixel_values=sequences.patches,
            pixel_attention_mask=sequences.mask.to(torch.int64),
            spatial_shapes=sequences.shapes(),
            return_dict=True,
            **asked,
        )
        return PatchesOutput(**output, patch_mask=sequences.mask)
    return _run_timm(encoder, sequences, pooling, **asked)


def run_siglip2(encoder: PreTrainedModel, images: Tensor, **asked: bool) -> Any:
    """Run SigLIP 2's image encoder, which knows sequences alone, on images of one shape, (B, 3, H, W)."""
    side = encoder.config.patch_size
    patches = torch.stack([convert_image_to_patches(image, side) for image in images])
    # On the CPU: on the meta device no values could be read, and a GPU would have to be waited for.
    shapes = torch.tensor([[length // side for length in images.shape[-2:]]] * len(images), device="cpu")
    given = {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}
    with _unchecked() if isinstance(images, FakeTensor) else contextlib.nullcontext():
        return encoder(**given, return_dict=True, **asked)


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Without transformers' checks of values, which fake tensors do not have."""
    before = os.environ.get(_CHECKS_SWITCH)
    os.environ[_CHECKS_SWITCH] = "1"
    try:
        yield
    finally:
        del os.environ[_CHECKS_SWITCH]
        if before is not None:
            os.environ[_CHECKS_SWITCH] = before


def _run_timm(encoder: Any, sequences: PatchSequences, pooling: str, **asked: bool) -> PatchesOutput:
    model: Any = encoder.timm_model
    given: dict[str, Any] = {"patch_coord": sequences.coordinates(), "patch_valid": sequences.mask}
    if asked.get("output_hidden_states"):
        asked |= {"return_prefix_tokens": True}
        given["output_fmt"] = "NLC"
    # As a tuple: transformers' output takes a dictionary, which timm gives here, for its own fields.
    hidden, *states = encoder(sequences.patches, do_pooling=False, return_dict=False, **given, **asked)
    if states and model.num_prefix_tokens:
        states = [[torch.cat([prefix, patches], dim=1) for patches, prefix in states[0]]]
    mask = sequences.mask
    if isinstance(hidden, dict):
        hidden, mask = hidden["patches"], hidden["patch_valid"]  # training may drop patches
    return PatchesOutput(
        last_hidden_state=hidden,
        pooler_output=model.forward_head(hidden, patch_valid=mask) if pooling == "pooler" else None,
        hidden_states=tuple(states[0]) if states else None,
        patch_mask=mask,
    )
