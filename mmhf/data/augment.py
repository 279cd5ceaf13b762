"""Random changes to training images, as the recipe's `augment` section asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms import v2

from mmhf.recipe.augment_sections import AffineSection, AugmentSection, RandomErasingSection

Augmentation = Callable[[Image.Image], Image.Image]


class ShrinkToSide(torch.nn.Module):
    """Scale an image down until its shorter side is `side` pixels, so that later changes cost little; never up."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Image.Image) -> Image.Image:
        scale = self.side / min(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(length * scale)) for length in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


class EraseRectangle(torch.nn.Module):
    """Random erasing of PIL images, which torchvision's own leaves as they are."""

    def __init__(self, section: RandomErasingSection, fill: int) -> None:
        super().__init__()
        self.erase = v2.RandomErasing(section.probability, section.scale, section.ratio, value=fill)

    def forward(self, image: Image.Image) -> Image.Image:
        erased: Image.Image = v2.functional.to_pil_image(self.erase(v2.functional.pil_to_tensor(image)))
        return erased


def build_augmentation(section: AugmentSection | None, image_size: int) -> Augmentation | None:
    """Build the random changes of a training image.

    All randomness comes from PyTorch's CPU generator, so a seed decides what an image becomes.

    Args:
        section (`AugmentSection`, *optional*):
            What to do, each change off when absent.
        image_size (`int`):
            Side of the image that the model sees, in pixels: the size of a random resized crop.

    Returns:
        `Callable` or `None`: PIL RGB image → PIL RGB image (of any size: the processor resizes); nothing when every
        change is off.
    """
    changes = [] if section is None else _changes(section, image_size)
    return v2.Compose(changes) if changes else None


def _changes(section: AugmentSection, image_size: int) -> list[torch.nn.Module]:
    bilinear = v2.InterpolationMode.BILINEAR
    changes: list[torch.nn.Module] = []
    if (crop := section.random_resized_crop) is not None:
        bicubic = v2.InterpolationMode.BICUBIC
        changes.append(v2.RandomResizedCrop(image_size, scale=crop.scale, ratio=crop.ratio, interpolation=bicubic))
    if section.horizontal_flip:
        changes.append(v2.RandomHorizontalFlip(section.horizontal_flip))
    if section.vertical_flip:
        changes.append(v2.RandomVerticalFlip(section.vertical_flip))
    if section.rotation:
        changes.append(v2.RandomRotation(section.rotation, interpolation=bilinear, fill=section.fill))
    if section.affine is not None:
        changes.append(_affine(section.affine, section.fill))
    if (perspective := section.perspective) is not None:
        changes.append(v2.RandomPerspective(perspective.distortion, perspective.probability, bilinear, section.fill))
    if (policy := section.rand_augment) is not None:
        changes.append(v2.RandAugment(policy.num_ops, policy.magnitude, interpolation=bilinear, fill=section.fill))
    changes += _changes_of_look(section)
    if changes and section.random_resized_crop is None:
        changes.insert(0, ShrinkToSide(image_size))
    return changes


def _changes_of_look(section: AugmentSection) -> list[torch.nn.Module]:
    changes: list[torch.nn.Module] = []
    if (jitter := section.color_jitter) is not None:
        changes.append(v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    if section.grayscale:
        changes.append(v2.RandomGrayscale(section.grayscale))
    if (blur := section.gaussian_blur) is not None:
        changes.append(v2.RandomApply([v2.GaussianBlur(blur.kernel_size, blur.sigma)], blur.probability))
    if (erasing := section.random_erasing) is not None:
        changes.append(EraseRectangle(erasing, section.fill))
    return changes


def _affine(section: AffineSection, fill: int) -> torch.nn.Module:
    change: torch.nn.Module = v2.RandomAffine(
        degrees=0,
        translate=section.translate,
        scale=section.scale,
        shear=section.shear or None,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=fill,
    )
    return change
