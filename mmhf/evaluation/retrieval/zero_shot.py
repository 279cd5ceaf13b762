"""Zero-shot classification: an image belongs to the class whose prompts are nearest (Radford et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from mmhf.conventions import IGNORED_LABEL
from mmhf.errors import InputError

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""What zero-shot pipelines say when nobody says otherwise."""

_TOP = 5
_PLACE = re.compile(r"\{c?\}")

ZERO_SHOT_PROTOCOLS: dict[str, str] = {
    "zero_shot_accuracy": "Share of images whose most similar class is their label. A class is the mean of the "
    "normalised embeddings of its prompts, normalised; similarity is the cosine.",
    "zero_shot_accuracy@5": "Share of images whose label is among the 5 most similar classes, where there are more "
    "than 5.",
    "zero_shot_mean_per_class_recall": "Unweighted mean, over the classes that have images, of the share of a class's "
    "images whose most similar class it is.",
}
"""How each number of `zero_shot_metrics` is defined."""


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """The prompts of one class: its name at `{}` (or `{c}`, as CLIP_benchmark writes it) of each template.

    Raises:
        InputError: A template has no place for the name, or there is none.
    """
    if not templates:
        raise InputError('templates: there is none; give one such as "a photo of a {}."')
    for template in templates:
        if not _PLACE.search(template):
            raise InputError(f'templates: {template!r} has no place for the class; write "a photo of a {{}}."')
    return [_PLACE.sub(lambda _: class_name, template) for template in templates]


@torch.inference_mode()
def zero_shot_class_embeddings(
    encode_texts: Callable[[list[str]], torch.Tensor],
    class_names: Sequence[str],
    templates: Sequence[str] | Mapping[str, Sequence[str]] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
) -> torch.Tensor:
    """One direction for each class: the mean over its prompts of their normalised embeddings, normalised.

    Args:
        encode_texts (`Callable`): List of N prompts -> embeddings `(N, D)`, of any length.
        class_names (`Sequence[str]`): Names of the C classes.
        templates (`Sequence[str]` or `Mapping[str, Sequence[str]]`): For all classes, with `{}` where the name goes;
            or the finished prompts of each class by its name.
        batch_size (`int`, defaults to 256): Prompts per call of `encode_texts`.

    Returns:
        `torch.Tensor` of shape `(C, D)`: On the CPU, of length 1.

    Raises:
        InputError: A template has no place for the name, or a class has no prompt.
    """
    prompts = [_prompts_of(name, templates) for name in class_names]
    flat = [prompt for of_class in prompts for prompt in of_class]
    embeds = torch.cat(
        [encode_texts(flat[at : at + batch_size]).detach().float().cpu() for at in range(0, len(flat), batch_size)]
    )
    by_class = torch.nn.functional.normalize(embeds, dim=-1).split([len(of_class) for of_class in prompts])
    return torch.nn.functional.normalize(torch.stack([of_class.mean(dim=0) for of_class in by_class]), dim=-1)


def _prompts_of(class_name: str, templates: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    if not isinstance(templates, Mapping):
        return fill_templates(class_name, templates)
    if not templates.get(class_name):
        raise InputError(f"templates: no prompt for the class {class_name!r}")
    return list(templates[class_name])


@torch.inference_mode()
def zero_shot_metrics(
    image_embeds: ArrayLike | torch.Tensor, class_embeds: torch.Tensor, labels: ArrayLike
) -> dict[str, float]:
    """The numbers that `ZERO_SHOT_PROTOCOLS` defines; equal similarities count for the class of the smaller id.

    Args:
        image_embeds (`ArrayLike` or `torch.Tensor` of shape `(N, D)`): Of any length and dtype.
        class_embeds (`torch.Tensor` of shape `(C, D)`): What `zero_shot_class_embeddings` made.
        labels (`ArrayLike` of shape `(N,)`): Class ids; rows with -100 are excluded.

    Raises:
        InputError: No row has a label.
        ValueError: A label is neither -100 nor below C.
    """
    images = torch.as_tensor(image_embeds).detach().float().cpu()
    targets = np.asarray(labels)
    kept = np.flatnonzero(targets != IGNORED_LABEL)
    targets = targets[kept]
    if not len(kept):
        raise InputError("zero-shot classification: no row has a label")
    if targets.min() < 0 or targets.max() >= len(class_embeds):
        raise ValueError(f"labels {targets.min()} to {targets.max()} are not all of the {len(class_embeds)} classes")
    similarities = torch.nn.functional.normalize(images[torch.from_numpy(kept)], dim=-1) @ class_embeds.float().cpu().T
    order = torch.sort(similarities, dim=1, descending=True, stable=True).indices.numpy()
    is_right = order[:, 0] == targets
    totals = np.bincount(targets)
    recalls = np.bincount(targets, weights=is_right)[totals > 0] / totals[totals > 0]
    metrics = {"zero_shot_accuracy": float(is_right.mean())}
    if len(class_embeds) > _TOP:
        metrics["zero_shot_accuracy@5"] = float((order[:, :_TOP] == targets[:, None]).any(axis=1).mean())
    return {**metrics, "zero_shot_mean_per_class_recall": float(recalls.mean())}
