"""Mixup and CutMix: the images of a batch, and their labels, mixed with each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmhf.data.samplers import SampleKey, derive_seed
from mmhf.recipe.augment_sections import AugmentSection

_SALT = 0x6D6978
"""Sets the seeds here apart from those of the images' own changes."""


class BatchMixer:
    """Mixes each image of a batch with another one.

    Mixup (Zhang et al., 2018, https://arxiv.org/abs/1710.09412): `x = l a + (1 - l) b`. CutMix (Yun et al., 2019,
    https://arxiv.org/abs/1905.04899): a rectangle of `b` lies over `a`, and l is the share of `a` that is still seen.
    Labels become `l a + (1 - l) b`, too; l is drawn from Beta(alpha, alpha) once a batch.

    What happens depends on the seed and the batch's epoch and row indices alone, and uses no global random state.
    Several processes share out a batch, so they mix smaller ones, in which images have other partners.

    Args:
        num_labels (`int`):
            Number of classes C.
        mixup (`float`, defaults to 0.0):
            Alpha of mixup; 0 is off.
        cutmix (`float`, defaults to 0.0):
            Alpha of CutMix; 0 is off. With both on, each batch gets either with equal chances.
        probability (`float`, defaults to 1.0):
            Share of the batches that are mixed.
        seed (`int`, defaults to 0):
            Seed.
    """

    def __init__(
        self, num_labels: int, *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0, seed: int = 0
    ) -> None:
        self.num_labels = num_labels
        self.mixup = mixup
        self.cutmix = cutmix
        self.probability = probability
        self.seed = seed

    def __call__(self, pixel_values: Tensor, labels: Tensor, keys: Sequence[SampleKey]) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            pixel_values (`Tensor`):
                (B, 3, H, W); not changed itself.
            labels (`Tensor`):
                (B,) class ids, or (B, C) of 0 and 1; an image with -100 is neither changed nor a partner.
            keys (`Sequence[SampleKey]`):
                Row index and epoch of each image.

        Returns:
            `tuple[Tensor, Tensor]`: images (B, 3, H, W) and probabilities of the classes (B, C), fp32; for an image
            with -100 a row of zeros, or of -100 where rows have several labels.
        """
        if labels.is_floating_point():
            counted, soft = labels.min(dim=1).values >= 0, labels
        else:
            counted = labels >= 0
            soft = functional.one_hot(labels.clamp(min=0), self.num_labels).float() * counted[:, None]
        members = torch.nonzero(counted).flatten()
        numbers = (number for key in keys for number in key.numbers)
        rng = np.random.default_rng(derive_seed(_SALT, self.seed, *numbers))
        if len(members) < 2 or rng.random() >= self.probability:
            return pixel_values, soft
        partners = torch.arange(len(labels))
        partners[members] = members[torch.from_numpy(rng.permutation(len(members)))]
        if self.cutmix and (not self.mixup or rng.random() < 0.5):
            mixed, share = _paste(pixel_values, pixel_values[partners], rng.beta(self.cutmix, self.cutmix), rng)
        else:
            share = float(rng.beta(self.mixup, self.mixup))
            mixed = share * pixel_values + (1 - share) * pixel_values[partners]
        mixed = torch.where(counted[:, None, None, None], mixed, pixel_values)
        return mixed, share * soft + (1 - share) * soft[partners]


def build_mixer(section: AugmentSection | None, num_labels: int | None, *, seed: int) -> BatchMixer | None:
    """Build what the recipe's `augment` section says of mixup and CutMix.

    Args:
        section (`AugmentSection`, *optional*):
            What to do.
        num_labels (`int`, *optional*):
            Number of classes; needed where something is on.
        seed (`int`):
            Seed.

    Returns:
        `BatchMixer` or `None`: nothing when both are off.

    Raises:
        ValueError: something is on, and the number of classes is not given.
    """
    if section is None or not (section.mixup or section.cutmix):
        return None
    if num_labels is None:
        raise ValueError("mixup and CutMix need the number of classes")
    options = {"mixup": section.mixup, "cutmix": section.cutmix, "probability": section.mix_probability}
    return BatchMixer(num_labels, seed=seed, **options)


def _paste(images: Tensor, others: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Put a rectangle of `others` over `images` that leaves `share` of the area, or more at an edge."""
    height, width = images.shape[-2:]
    side = np.sqrt(1 - share)
    centre_y, centre_x = rng.random(2)
    top, bottom = (int(np.clip(round((centre_y + sign * side / 2) * height), 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(round((centre_x + sign * side / 2) * width), 0, width)) for sign in (-1, 1))
    pasted = images.clone()
    pasted[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)
