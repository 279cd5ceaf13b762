"""Views of an image whose answers a classifier averages. Depends on torch only: releases carry this file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ImageViews:
    """An image as it is, flipped, and cropped: each crop, and the whole, with each combination of the flips.

    Args:
        horizontal_flip (`bool`): Also flipped left to right.
        vertical_flip (`bool`): Also upside down.
        center_crops (`Sequence[float]`): Shares of height and width: also the centre of the image, scaled up again
            (bilinear).
    """

    def __init__(
        self, *, horizontal_flip: bool = False, vertical_flip: bool = False, center_crops: Sequence[float] = ()
    ) -> None:
        self.shares = (1.0, *center_crops)
        self.flips = [
            [axis for axis, is_flipped in zip((-1, -2), chosen, strict=True) if is_flipped]
            for chosen in product(*([False, True] if flip else [False] for flip in (horizontal_flip, vertical_flip)))
        ]

    @classmethod
    def of_config(cls, given: Mapping[str, Any] | None) -> ImageViews:
        """The views that a config has; without any, the image as it is."""
        return cls(**(given or {}))

    def __len__(self) -> int:
        return len(self.shares) * len(self.flips)

    def others(self, images: Tensor) -> Iterator[Tensor]:
        """All views but the first, the images as they are: (B, 3, H, W) each, of normalised pixels.

        Raises:
            `ValueError`: the images have no common shape.
        """
        if images.dim() != 4:
            raise ValueError("images in their own shape have no views (config.views)")
        for share, axes in list(product(self.shares, self.flips))[1:]:
            yield _center(images, share).flip(axes) if axes else _center(images, share)

    def describe(self) -> str:
        """In words, for what is said of a number."""
        flips = {(): "", (-1,): "left to right", (-2,): "upside down", (-1, -2): "both ways"}
        flipped = ", ".join(filter(None, (flips[tuple(axes)] for axes in self.flips)))
        crops = ", ".join(f"{share:g}" for share in self.shares[1:])
        kinds = [f"flipped {flipped}"] * bool(flipped) + [f"the centre at {crops} of the sides"] * bool(crops)
        return f"mean of {len(self)} views of each image (as it is, {', '.join(kinds)})"


def _center(images: Tensor, share: float) -> Tensor:
    """The centre of images, scaled to their whole size."""
    if share == 1.0:
        return images
    height, width = images.shape[-2:]
    rows, columns = max(round(height * share), 1), max(round(width * share), 1)
    top, left = (height - rows) // 2, (width - columns) // 2
    inner = images[..., top : top + rows, left : left + columns]
    return functional.interpolate(inner, size=(height, width), mode="bilinear", align_corners=False)


def mean_of_classes(logits: Sequence[Tensor]) -> Tensor:
    """Logits (B, C) whose softmax is the mean of several softmaxes; fp32."""
    return torch.stack([each.float().log_softmax(dim=-1) for each in logits]).logsumexp(dim=0) - math.log(len(logits))


def mean_of_odds(logits: Sequence[Tensor]) -> Tensor:
    """Logits (B, C) whose sigmoid is the mean of several sigmoids; fp32."""
    given = torch.stack([each.float() for each in logits])
    return functional.logsigmoid(given).logsumexp(dim=0) - functional.logsigmoid(-given).logsumexp(dim=0)
