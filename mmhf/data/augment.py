"""Random changes to training images, as the recipe's `augment` section asks for."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mmhf.conventions import ImageSize, height_and_width
from mmhf.data.pixels import picture_of, pixels_of
from mmhf.recipe.augment_sections import AffineSection, AugmentSection, RandomErasingSection

PictureT = TypeVar("PictureT", Image.Image, Tensor)


class Augmentation(Protocol):
    """Changes a picture at random, by PyTorch's CPU generator."""

    def __call__(self, image: PictureT) -> PictureT:
        """From a PIL RGB image, or its uint8 pixels (3, H, W), to another one of any size."""
        ...


class ShrinkToSide(torch.nn.Module):
    """Scale an image down as far as it still covers what the model sees, so that later changes cost little; never up.

    Args:
        side ([`ImageSize`]): Of the image that the model sees: one side, or height and width.
    """

    def __init__(self, side: ImageSize) -> None:
        super().__init__()
        self.height, self.width = height_and_width(side)

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        size = image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])
        scale = max(self.width / size[0], self.height / size[1])
        if scale >= 1:
            return image
        width, height = (max(1, round(length * scale)) for length in size)
        if isinstance(image, Tensor):
            resized: Tensor = v2.functional.resize(
                image, [height, width], v2.InterpolationMode.BICUBIC, antialias=True
            )
            return resized
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


class OnPicture(torch.nn.Module):
    """A change that is made to PIL images, also where pixels are given: on tensors it would round otherwise."""

    def __init__(self, change: torch.nn.Module) -> None:
        super().__init__()
        self.change = change

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        changed: Image.Image = self.change(picture_of(image) if isinstance(image, Tensor) else image)
        return pixels_of(changed) if isinstance(image, Tensor) else changed


class Flips(torch.nn.Module):
    """Flips and nothing else: an image has two views, or four, and a seed says which of them a sample is.

    Args:
        side ([`ImageSize`]): See [`ShrinkToSide`].
        horizontal, vertical (`float`): How often.

    Attributes:
        num_views (`int`): View 0 is not flipped.
        description (`str`): The same for the same views, however often each is shown.
    """

    def __init__(self, side: ImageSize, horizontal: float, vertical: float) -> None:
        super().__init__()
        self.shrink = ShrinkToSide(side)
        flips = ((horizontal, v2.functional.horizontal_flip), (vertical, v2.functional.vertical_flip))
        self._flips = [(share, flip) for share, flip in flips if share]
        self.num_views = 2 ** len(self._flips)
        self.description = f"flips {side} {horizontal > 0} {vertical > 0}"

    def forward(self, image: PictureT) -> PictureT:
        return self.view(image, self._draw(torch.default_generator))

    def view(self, image: PictureT, number: int) -> PictureT:
        """One of the views of a picture."""
        changed: PictureT = self.shrink(image)
        for place, (_, flip) in enumerate(self._flips):
            changed = flip(changed) if number >> place & 1 else changed
        return changed

    def view_of(self, seed: int) -> int:
        """The view that `forward` shows under a seed."""
        return self._draw(torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator) -> int:
        # As torchvision's own flips draw, so that a seed means what it meant.
        drawn = [bool(torch.rand(1, generator=generator) < share) for share, _ in self._flips]
        return sum(is_flipped << place for place, is_flipped in enumerate(drawn))


class EraseRectangle(torch.nn.Module):
    """Random erasing of PIL images, which torchvision's own leaves as they are."""

    def __init__(self, section: RandomErasingSection, fill: int) -> None:
        super().__init__()
        self.erase = v2.RandomErasing(section.probability, section.scale, section.ratio, value=fill)

    def forward(self, image: Image.Image) -> Image.Image:
        erased: Image.Image = v2.functional.to_pil_image(self.erase(v2.functional.pil_to_tensor(image)))
        return erased


_ONLY_FLIPS = (ShrinkToSide, v2.RandomHorizontalFlip, v2.RandomVerticalFlip)


def build_augmentation(section: AugmentSection | None, image_size: ImageSize) -> Augmentation | None:
    """Build the random changes of a training image.

    All randomness comes from PyTorch's CPU generator, so a seed decides what an image becomes.

    Args:
        section (`AugmentSection`, *optional*):
            What to do, each change off when absent.
        image_size ([`ImageSize`]):
            Of the image that the model sees: the size of a random resized crop.

    Returns:
        `Augmentation` or `None`: see there; nothing when every change is off. Pixels become what a PIL image becomes,
        up to rounding where it is resized.
    """
    changes = [] if section is None else _changes(section, image_size)
    if section is not None and all(isinstance(change, _ONLY_FLIPS) for change in changes) and changes:
        return Flips(image_size, section.horizontal_flip, section.vertical_flip)
    return v2.Compose(changes) if changes else None


def _changes(section: AugmentSection, image_size: ImageSize) -> list[torch.nn.Module]:
    bilinear = v2.InterpolationMode.BILINEAR
    changes: list[torch.nn.Module] = []
    if (crop := section.random_resized_crop) is not None:
        bicubic = v2.InterpolationMode.BICUBIC
        size = height_and_width(image_size)
        changes.append(v2.RandomResizedCrop(size, scale=crop.scale, ratio=crop.ratio, interpolation=bicubic))
    if section.horizontal_flip:
        changes.append(v2.RandomHorizontalFlip(section.horizontal_flip))
    if section.vertical_flip:
        changes.append(v2.RandomVerticalFlip(section.vertical_flip))
    later: list[torch.nn.Module] = []
    if section.rotation:
        later.append(v2.RandomRotation(section.rotation, interpolation=bilinear, fill=section.fill))
    if section.affine is not None:
        later.append(_affine(section.affine, section.fill))
    if (perspective := section.perspective) is not None:
        later.append(v2.RandomPerspective(perspective.distortion, perspective.probability, bilinear, section.fill))
    if (policy := section.rand_augment) is not None:
        later.append(v2.RandAugment(policy.num_ops, policy.magnitude, interpolation=bilinear, fill=section.fill))
    later += _changes_of_look(section)
    if later:
        changes.append(OnPicture(v2.Compose(later)))
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
