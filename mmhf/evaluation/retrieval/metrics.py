"""Recall, median rank and mean average precision of image-text retrieval, each with the sentence that defines it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mmhf.conventions import IGNORED_IMAGE
from mmhf.errors import InputError
from mmhf.evaluation.intervals import Interval, bootstrap_interval
from mmhf.evaluation.retrieval.ranks import RetrievalRanks, retrieval_ranks
from mmhf.evaluation.retrieval.unique_texts import unique_text_recalls

RECALL_KS = (1, 5, 10)
"""Image of a caption that no metric may see."""
MAX_UNIFORMITY_ROWS = 4096
"""Rows beyond which uniformity is that of a fixed random sample of so many."""
_BLOCK_ROWS = 1024

_COSINE = "Similarity is the cosine of the embeddings, candidates are all of the split"
_TIES = "Ties: as torch.topk orders them, which is CLIP_benchmark's rule"
_TIES_IN_ORDER = "Ties: the earlier row stands first"
_ANSWERS = {
    "image_to_text": ("images for which at least one of their captions is", "captions"),
    "text_to_image": ("captions for which their image is", "images"),
}


def _protocols() -> dict[str, str]:
    protocols = {}
    for direction, (queries, candidates) in _ANSWERS.items():
        for k in RECALL_KS:
            protocols[f"{direction}_recall@{k}"] = (
                f"Share of {queries} among the {k} most similar {candidates} (CLIP_benchmark's recall). "
                f"{_COSINE}. {_TIES}."
            )
        protocols[f"{direction}_median_rank"] = (
            f"Median rank, from 1, of the first right one among all {candidates}. {_TIES_IN_ORDER}."
        )
        protocols[f"{direction}_map"] = (
            f"Mean over queries of average precision: the mean, over the right {candidates}, of the share of right "
            f"ones down to each. {_TIES_IN_ORDER}."
        )
    protocols["mean_recall"] = "Mean of the six recalls: one number to choose checkpoints by."
    protocols["alignment"] = (
        "Mean squared distance between an image and each of its captions on the unit sphere; smaller is closer "
        "(Wang and Isola 2020)."
    )
    protocols["modality_gap"] = (
        "Distance between the mean image embedding and the mean text embedding, each of length 1 before: 0 where both "
        "lie around the same point, at most 2 (Liang et al. 2022)."
    )
    for modality in ("image", "text"):
        protocols[f"{modality}_uniformity"] = (
            f"Logarithm of the mean of exp(-2 d²) over pairs of {modality} embeddings at distance d on the unit "
            f"sphere; smaller is more evenly spread (Wang and Isola 2020). Over {MAX_UNIFORMITY_ROWS:,} drawn rows "
            "where there are more."
        )
    return protocols


RETRIEVAL_PROTOCOLS: dict[str, str] = _protocols()
"""How each number of `retrieval_metrics` is defined."""
UNIQUE_TEXT_PROTOCOLS: dict[str, str] = {
    f"unique_{direction}_recall@{k}": (
        f"As {direction}_recall@{k}, where captions of equal text are one caption, which is right for every image "
        f"that has it. {_TIES_IN_ORDER}."
    )
    for direction in _ANSWERS
    for k in RECALL_KS
}
"""How the further numbers of `evaluate_retrieval` with captions are defined."""


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation:
    """All that one split's embeddings say, as plain numbers.

    Attributes:
        metrics (`dict[str, float]`): the numbers that `RETRIEVAL_PROTOCOLS` and, with captions,
            `UNIQUE_TEXT_PROTOCOLS` define; never NaN.
        undefined (`dict[str, str]`): metrics that this split cannot define, each with the reason.
        queries (`NDArray[np.int64]` of shape `(Q,)`): rows of the images that have captions.
        first_caption_ranks (`NDArray[np.int64]` of shape `(Q,)`): rank of the first right caption of each.
        captions (`NDArray[np.int64]` of shape `(C,)`): rows of the captions that were evaluated.
        image_ranks (`NDArray[np.int64]` of shape `(C,)`): rank of the right image of each.
        owners (`NDArray[np.int64]` of shape `(C,)`): row of the right image of each.
        num_images (`int`): images among which captions searched.
        num_ignored (`int`): captions left out because their image is -1.
    """

    metrics: dict[str, float]
    undefined: dict[str, str]
    queries: NDArray[np.int64]
    first_caption_ranks: NDArray[np.int64]
    captions: NDArray[np.int64]
    image_ranks: NDArray[np.int64]
    owners: NDArray[np.int64]
    num_images: int
    num_ignored: int


def retrieval_metrics(
    image_embeds: ArrayLike | torch.Tensor, text_embeds: ArrayLike | torch.Tensor, image_index: ArrayLike
) -> dict[str, float]:
    """The numbers that `RETRIEVAL_PROTOCOLS` defines, for Trainer's `compute_metrics`; undefined ones are left out.

    Args and errors are those of `evaluate_retrieval`.
    """
    return evaluate_retrieval(image_embeds, text_embeds, image_index).metrics


@torch.inference_mode()
def evaluate_retrieval(
    image_embeds: ArrayLike | torch.Tensor,
    text_embeds: ArrayLike | torch.Tensor,
    image_index: ArrayLike,
    *,
    captions: Sequence[str] | None = None,
) -> RetrievalEvaluation:
    """Search captions by image and images by caption, and say how well that went.

    The similarities of 31,000 images and 155,000 captions are never held at once: memory beyond normalised copies of
    the embeddings stays under 256 MiB.

    Args:
        image_embeds (`ArrayLike` or `torch.Tensor` of shape `(I, D)`): One row an image, of any length and dtype.
        text_embeds (`ArrayLike` or `torch.Tensor` of shape `(T, D)`): One row a caption.
        image_index (`ArrayLike` of shape `(T,)`): Row of each caption's image; -1 leaves the caption out. An image
            without captions is a candidate and no query.
        captions (`Sequence[str]`, *optional*): Their T texts; absent: the numbers where equal texts are one are left
            out.

    Raises:
        InputError: An embedding is NaN or infinite: the training has diverged.
        ValueError: The shapes disagree, an index is outside the images, or no caption is left.
    """
    index = _as_tensor(image_index).numpy()
    images, texts = _normalised(image_embeds, "image"), _normalised(text_embeds, "text")
    _check_shapes(images, texts, index)
    rows = np.flatnonzero(index != IGNORED_IMAGE)
    if not len(rows):
        raise ValueError("no caption has an image")
    if len(rows) < len(index):
        texts = texts[torch.from_numpy(rows)]
    owners = index[rows].astype(np.int64)
    ranks = retrieval_ranks(images, texts, owners, RECALL_KS)
    queries = np.unique(owners)
    metrics = {**_search_metrics(ranks, owners, queries), "alignment": _alignment(images, texts, owners)}
    metrics["modality_gap"] = modality_gap(images, texts)
    undefined = {}
    if captions is not None:
        said = [captions[row] for row in rows.tolist()]
        metrics |= unique_text_recalls(images, texts, owners, said, RECALL_KS)
    for modality, embeds in (("image", images), ("text", texts)):
        if len(embeds) > 1:
            metrics[f"{modality}_uniformity"] = uniformity(embeds)
        else:
            undefined[f"{modality}_uniformity"] = f"it is of pairs, and there is one {modality}"
    return RetrievalEvaluation(
        metrics=metrics,
        undefined=undefined,
        queries=queries,
        first_caption_ranks=_first_ranks(ranks.caption_ranks, owners, queries),
        captions=rows,
        image_ranks=ranks.image_ranks,
        owners=owners,
        num_images=len(images),
        num_ignored=len(index) - len(rows),
    )


def _as_tensor(values: ArrayLike | torch.Tensor) -> torch.Tensor:
    return (values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))).detach().cpu()


def _normalised(embeds: ArrayLike | torch.Tensor, modality: str) -> torch.Tensor:
    rows = _as_tensor(embeds)
    if rows.ndim != 2:
        raise ValueError(f"expected {modality} embeddings (N, D), got {tuple(rows.shape)}")
    normalised = torch.nn.functional.normalize(rows.float(), dim=-1)
    broken = int((~normalised.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"the {modality} embeddings of {broken} of {len(rows)} rows are NaN or infinite: the training has "
            "diverged; lower training.learning_rate, set training.max_grad_norm, or train in full precision"
        )
    return normalised


def _check_shapes(images: torch.Tensor, texts: torch.Tensor, index: NDArray[np.int64]) -> None:
    if images.shape[1] != texts.shape[1] or index.shape != (len(texts),):
        raise ValueError(
            "expected image embeddings (I, D), text embeddings (T, D) and image_index (T,), "
            f"got {tuple(images.shape)}, {tuple(texts.shape)} and {index.shape}"
        )
    outside = (index < IGNORED_IMAGE) | (index >= len(images))
    if outside.any():
        raise ValueError(f"image_index {index[outside][0]} is outside the {len(images)} images")


def _search_metrics(ranks: RetrievalRanks, owners: NDArray[np.int64], queries: NDArray[np.int64]) -> dict[str, float]:
    first_ranks = _first_ranks(ranks.caption_ranks, owners, queries)
    metrics: dict[str, float] = {}
    for direction, hits, firsts, precisions in (
        (
            "image_to_text",
            {k: of_images[queries] for k, of_images in ranks.image_hits.items()},
            first_ranks,
            _average_precisions(ranks.caption_ranks, owners, queries),
        ),
        ("text_to_image", ranks.caption_hits, ranks.image_ranks, 1 / ranks.image_ranks),
    ):
        metrics |= {f"{direction}_recall@{k}": float(hits[k].mean()) for k in RECALL_KS}
        metrics[f"{direction}_median_rank"] = float(np.median(firsts))
        metrics[f"{direction}_map"] = float(precisions.mean())
    metrics["mean_recall"] = float(np.mean([value for name, value in metrics.items() if "_recall@" in name]))
    return metrics


def _first_ranks(
    caption_ranks: NDArray[np.int64], owners: NDArray[np.int64], queries: NDArray[np.int64]
) -> NDArray[np.int64]:
    firsts = np.full(queries[-1] + 1, np.iinfo(np.int64).max)
    np.minimum.at(firsts, owners, caption_ranks)
    return firsts[queries]


def _average_precisions(
    caption_ranks: NDArray[np.int64], owners: NDArray[np.int64], queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each image: the n-th of its captions, standing at rank r, has precision n / r."""
    order = np.lexsort((caption_ranks, owners))
    starts = np.searchsorted(owners[order], queries)
    counts = np.diff(np.append(starts, len(order)))
    nth = np.arange(len(order)) - np.repeat(starts, counts) + 1
    return np.add.reduceat(nth / caption_ranks[order], starts) / counts


def _alignment(images: torch.Tensor, texts: torch.Tensor, owners: NDArray[np.int64]) -> float:
    """In pieces, so that the images are not copied once a caption."""
    pieces = np.array_split(np.arange(len(owners)), -(-len(owners) // MAX_UNIFORMITY_ROWS))
    sums = [
        len(piece) * alignment(images[torch.from_numpy(owners[piece])], texts[piece[0] : piece[-1] + 1])
        for piece in pieces
    ]
    return float(np.sum(sums)) / len(owners)


def chance_recall(evaluation: RetrievalEvaluation) -> float:
    """`mean_recall` of a random order: k of N for captions, and 1 - (1 - k / M)^m for images with m captions each."""
    num_captions, num_images = len(evaluation.captions), evaluation.num_images
    each = num_captions / len(evaluation.queries)
    recalls = []
    for k in RECALL_KS:
        recalls += [min(k / num_images, 1.0), 1 - (1 - min(k / num_captions, 1.0)) ** each]
    return float(np.mean(recalls))


def recall_interval(evaluation: RetrievalEvaluation, *, seed: int = 0) -> Interval:
    """`mean_recall` with its bootstrap interval: images are drawn, each with its captions."""
    ks = np.array(RECALL_KS)
    by_image = np.searchsorted(evaluation.queries, evaluation.owners)
    num_captions = np.bincount(by_image, minlength=len(evaluation.queries)).astype(np.float64)
    found = evaluation.image_ranks[:, None] <= ks
    of_images = (evaluation.first_caption_ranks[:, None] <= ks).astype(np.float64)
    of_captions = np.stack([np.bincount(by_image, weights=column) for column in found.T], axis=1)
    statistics = np.column_stack([np.ones(len(of_images)), of_images, num_captions, of_captions])

    def mean_recall(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        images, captions = np.split(sums, 2, axis=1)
        shares = [part[:, 1:] / part[:, :1] for part in (images, captions)]
        mean: NDArray[np.float64] = np.hstack(shares).mean(axis=1, keepdims=True)
        return mean

    low, high = bootstrap_interval(statistics, mean_recall, seed=seed)
    return Interval(evaluation.metrics["mean_recall"], float(low[0]), float(high[0]))


def alignment(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean squared distance of right pairs, `E |f(x) - f(y)|²`: 0 when they coincide, 2 when they are orthogonal.

    Wang and Isola, 2020, https://arxiv.org/abs/2005.10242.

    Args:
        images (`torch.Tensor` of shape `(N, D)`): Of length 1.
        texts (`torch.Tensor` of shape `(N, D)`): Of length 1; row n belongs to row n of `images`.
    """
    total: float = sum(
        (left - right).pow(2).sum(dtype=torch.float64).item()
        for left, right in zip(images.split(_BLOCK_ROWS), texts.split(_BLOCK_ROWS), strict=True)
    )
    return total / len(images)


def modality_gap(images: torch.Tensor, texts: torch.Tensor) -> float:
    """Distance between the means of image and text embeddings.

    Liang et al., "Mind the Gap", 2022, https://arxiv.org/abs/2203.02053.

    Args:
        images (`torch.Tensor` of shape `(I, D)`): Of length 1.
        texts (`torch.Tensor` of shape `(T, D)`): Of length 1.
    """
    means = [embeds.mean(dim=0, dtype=torch.float64) for embeds in (images, texts)]
    return float((means[0] - means[1]).norm())


def uniformity(embeds: torch.Tensor, *, t: float = 2.0) -> float:
    """Logarithm of the mean Gaussian potential of pairs, `log E exp(-t |f(x) - f(y)|²)`. Source: as `alignment`.

    0 when all embeddings are the same, about -4 (for t = 2) when they fill a sphere of many dimensions evenly.

    Args:
        embeds (`torch.Tensor` of shape `(N, D)`): Of length 1, N at least 2. Of more than 4,096 rows so many are
            drawn, always the same ones.
        t (`float`, defaults to 2): The paper's.

    Raises:
        ValueError: There is no pair.
    """
    if len(embeds) < 2:
        raise ValueError(f"uniformity is of pairs, got {len(embeds)} rows")
    if len(embeds) > MAX_UNIFORMITY_ROWS:
        chosen = torch.randperm(len(embeds), generator=torch.Generator().manual_seed(0))[:MAX_UNIFORMITY_ROWS]
        embeds = embeds[chosen]
    rows = len(embeds)
    total = sum(_block_potential(embeds, start, t) for start in range(0, rows, _BLOCK_ROWS))
    return math.log(max(total / (rows * (rows - 1)), torch.finfo(torch.float64).tiny))


def _block_potential(embeds: torch.Tensor, start: int, t: float) -> float:
    """Sum of the potentials of a block's rows with all others; |x - y|² = 2 - 2 x·y on the sphere."""
    products = embeds[start : start + _BLOCK_ROWS] @ embeds.T
    potentials = ((products - 1).clamp(max=0) * (2 * t)).exp()
    potentials.diagonal(offset=start).zero_()
    return potentials.sum(dtype=torch.float64).item()
