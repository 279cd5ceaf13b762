"""What the classes of the training split make of loss and sampling."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from mmhf.data.loading import LoadedData
from mmhf.data.table import extra_column
from mmhf.errors import InputError
from mmhf.models.classification_loss import LossSettings
from mmhf.recipe.classification import LossSection, SamplingSection


def loss_settings(section: LossSection, data: LoadedData | None) -> LossSettings:
    """The loss that a recipe describes, for the classes of its data.

    Args:
        section ([`LossSection`]): Section `loss` of the recipe.
        data (`LoadedData`, *optional*): Absent when only shapes are wanted: what depends on the classes is left out.

    Raises:
        InputError: There are not as many weights as classes, or counts are needed of a stream or of a class that has
            no training row.
    """
    if data is None:
        return LossSettings(section.label_smoothing, focal_gamma=section.focal_gamma)
    adjustment = None
    if section.logit_adjustment:
        counts = _class_counts(data, "loss.logit_adjustment", "")
        adjustment = [float(value) for value in section.logit_adjustment * np.log(counts / counts.sum())]
    return LossSettings(
        label_smoothing=section.label_smoothing,
        class_weights=_class_weights(section.class_weights, data),
        focal_gamma=section.focal_gamma,
        logit_adjustment=adjustment,
    )


def row_weights(section: SamplingSection, rows: datasets.Dataset | datasets.IterableDataset) -> NDArray[np.float64]:
    """How often each training row is drawn in comparison: (rows of its class)^-power.

    Raises:
        InputError: The rows are a stream.
    """
    if not isinstance(rows, datasets.Dataset):
        raise InputError("sampling: needs all labels at once; a stream has none, remove `sampling`")
    name = "label" if section.by == "label" else extra_column(section.by)
    values = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    # A missing value is a class of its own.
    classes = values.dictionary_encode(null_encoding="encode").indices.to_numpy()
    weights: NDArray[np.float64] = (np.bincount(classes).astype(np.float64) ** -section.power)[classes]
    return weights


def _class_weights(weights: str | Sequence[float] | None, data: LoadedData) -> list[float] | None:
    if weights is None:
        return None
    if isinstance(weights, str):  # balanced: N / (C × count), as in scikit-learn
        counts = _class_counts(data, "loss.class_weights: balanced", ", give a list")
        return [float(weight) for weight in counts.sum() / (len(counts) * counts)]
    if len(weights) != len(data.label_names):
        raise InputError(
            f"loss.class_weights: {len(weights)} weights for the {len(data.label_names)} labels {data.label_names}"
        )
    return list(weights)


def _class_counts(data: LoadedData, setting: str, way_out: str) -> NDArray[np.int64]:
    rows = data.splits["train"]
    if not isinstance(rows, datasets.Dataset):
        raise InputError(f"{setting} needs all labels at once; a stream has none{way_out}")
    counts = np.bincount(np.asarray(rows["label"]), minlength=len(data.label_names))
    if not counts.all():
        absent = data.label_names[int(np.argmin(counts))]
        raise InputError(f"{setting}, but no training row has the label {absent!r}")
    return counts
