"""The `augment:` section: random changes to training images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator

from mmhf.recipe.sections import Fraction, NonNegativeFloat, PositiveInt, Range, Section


class ColorJitterSection(Section):
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


def _require_ascending(name: str, bounds: list[float] | None) -> None:
    if bounds is not None and not 0.0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} = {bounds} must be above 0, the smallest first")


def _require_rectangle(scale: list[float], ratio: list[float]) -> None:
    _require_ascending("scale", scale)
    _require_ascending("ratio", ratio)
    if scale[1] > 1.0:
        raise ValueError(f"scale = {scale} is a share of the image's area, at most 1")


class AffineSection(Section):
    scale: Range | None = None
    """Smallest and largest zoom factor."""
    translate: Range | None = None
    """Largest horizontal and vertical shift, as fractions of the image's size."""
    shear: NonNegativeFloat = 0.0
    """Largest shear, in degrees."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> AffineSection:
        _require_ascending("scale", self.scale)
        if self.translate is not None and not all(0.0 <= shift <= 1.0 for shift in self.translate):
            raise ValueError(f"translate = {self.translate} must be fractions between 0 and 1")
        return self


class RandomResizedCropSection(Section):
    scale: Range = [0.08, 1.0]
    """Smallest and largest share of the image's area."""
    ratio: Range = [0.75, 4 / 3]
    """Smallest and largest aspect ratio."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> RandomResizedCropSection:
        _require_rectangle(self.scale, self.ratio)
        return self


class PerspectiveSection(Section):
    distortion: Fraction = 0.5
    """How far the corners move, as a share of half the side."""
    probability: Fraction = 0.5


class RandAugmentSection(Section):
    """RandAugment (Cubuk et al., 2020)."""

    num_ops: PositiveInt = 2
    """Changes an image gets."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Their strength."""


class GaussianBlurSection(Section):
    kernel_size: PositiveInt = 5
    """Side of the window in pixels, an odd number."""
    sigma: Range = [0.1, 2.0]
    """Smallest and largest standard deviation in pixels."""
    probability: Fraction = 0.5

    @model_validator(mode="after")
    def _has_a_centre(self) -> GaussianBlurSection:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size = {self.kernel_size} must be odd")
        _require_ascending("sigma", self.sigma)
        return self


class RandomErasingSection(Section):
    """Random erasing (Zhong et al., 2020): a rectangle takes the grey level `fill`."""

    probability: Fraction = 0.25
    scale: Range = [0.02, 0.33]
    """Smallest and largest share of the image's area."""
    ratio: Range = [0.3, 3.3]
    """Smallest and largest aspect ratio."""

    @model_validator(mode="after")
    def _has_possible_ranges(self) -> RandomErasingSection:
        _require_rectangle(self.scale, self.ratio)
        return self


class AugmentSection(Section):
    """Random changes to training images, in this order; each is off when absent. Evaluation has none."""

    random_resized_crop: RandomResizedCropSection | None = None
    horizontal_flip: Fraction = 0.0
    vertical_flip: Fraction = 0.0
    rotation: NonNegativeFloat = 0.0
    """Largest rotation to either side, in degrees."""
    affine: AffineSection | None = None
    perspective: PerspectiveSection | None = None
    rand_augment: RandAugmentSection | None = None
    color_jitter: ColorJitterSection | None = None
    grayscale: Fraction = 0.0
    gaussian_blur: GaussianBlurSection | None = None
    random_erasing: RandomErasingSection | None = None
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    """Grey level of what changes of shape leave uncovered, and of what is erased."""
    mixup: NonNegativeFloat = 0.0
    """Mixup (Zhang et al., 2018) of the images of a batch: the alpha of its Beta distribution, such as 0.2."""
    cutmix: NonNegativeFloat = 0.0
    """CutMix (Yun et al., 2019), as `mixup`, such as 1.0; with both, each batch gets either by the toss of a coin."""
    mix_probability: Fraction = 1.0
    """Share of the batches that mixup or CutMix change."""


def needed_side(image_size: int | tuple[int, int], sections: Iterable[AugmentSection | None]) -> int:
    """The pixels that the shorter side of a picture needs, so that none is scaled up for want of them.

    Args:
        image_size (`int` or `tuple[int, int]`): Of the image that the model sees: side of a square, or height and
            width.
        sections (`Iterable[AugmentSection | None]`): Random changes that pictures get; a random crop is cut out of a
            larger one.
    """
    crops = [each.random_resized_crop.scale[0] for each in sections if each and each.random_resized_crop]
    side = image_size if isinstance(image_size, int) else max(image_size)
    return math.ceil(side / math.sqrt(min(crops, default=1.0)))
