"""How often the rows of each of several joined data sets are drawn."""

from __future__ import annotations

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.streams.captions import CaptionStream, StreamedCaptions, caption_dataset
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionDataSectionBase
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.data_sources import JoinedCaptionsSection, JoinedDataSection


def weights_by_dataset(
    section: DataSectionBase, rows: datasets.Dataset, within: NDArray[np.float64] | None = None
) -> NDArray[np.float64] | None:
    """How often each training row is drawn in comparison, so that each data set has its share of the samples.

    Args:
        section (`DataSectionBase`):
            The recipe's `data`.
        rows (`datasets.Dataset`):
            The training rows.
        within (`NDArray` of shape `(N,)`, *optional*):
            How often each is drawn in comparison to others of its data set; absent: all alike.

    Returns:
        `NDArray` of shape `(N,)`: `within` where the recipe gives data sets no weights.

    Raises:
        InputError: a data set with a weight has no training row.
    """
    if not isinstance(section, JoinedDataSection) or section.weights is None:
        return within
    names = np.asarray(rows.select_columns([extra_column(section.column)])[:][extra_column(section.column)])
    weights = np.ones(len(rows)) if within is None else within.astype(np.float64)
    for name, share in section.weights.items():
        chosen = names == name
        if not chosen.any():
            raise InputError(f"data.weights.{name}: the data set has no training row; leave it out of `datasets`")
        weights[chosen] *= share / weights[chosen].sum()
    return weights


def training_captions(
    section: CaptionDataSectionBase, rows: datasets.Dataset | StreamedCaptions, *, seed: int
) -> CaptionDataset | CaptionStream:
    """The training samples of a task that reads captions, those of joined data sets by their weights.

    Args:
        section (`CaptionDataSectionBase`):
            The recipe's `data`.
        rows (`Dataset` or `StreamedCaptions`):
            The training split.
        seed (`int`):
            Seed of the choice of captions.
    """
    if isinstance(rows, StreamedCaptions) or not isinstance(section, JoinedCaptionsSection) or section.weights is None:
        return caption_dataset(rows, section.captions, seed=seed)
    captions = rows.select_columns(["captions"])[:]["captions"]
    # Within a data set, images are drawn alike, or captions where each is a sample.
    counts = np.array([len(each) if section.captions == "all" else 1 for each in captions], dtype=np.float64)
    return CaptionDataset(rows, section.captions, seed=seed, weights=weights_by_dataset(section, rows, counts))
