"""The parts of a model whose outputs `forward` takes in place of what they are computed from.

Depends on torch only, so that a release can carry this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class FeaturePart:
    """A part of a model that can be computed once, while all of it is frozen.

    Attributes:
        name (`str`): `vision` or `text`; the part's parameter groups are those that start with this and a dot.
        inputs (`tuple[str, ...]`): Arguments of `forward` that it is computed from.
        feature (`str`): Argument of `forward` that takes its output in their place.
    """

    name: str
    inputs: tuple[str, ...]
    feature: str


VISION = FeaturePart("vision", ("pixel_values",), "image_features")
"""An image encoder with the pooling that is not learnt."""

TEXT = FeaturePart("text", ("input_ids", "attention_mask"), "text_features")
"""A text encoder with the pooling that is not learnt."""


@runtime_checkable
class HasFeatureParts(Protocol):
    """A model whose `forward` takes the outputs of some of its parts."""

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """Its parts, in the order of `forward`'s arguments."""
        ...

    def compute_features(self, part: FeaturePart, **inputs: Tensor) -> Tensor:
        """What `forward` would compute of a part for these inputs: (B, ...), in the dtype it would have there.

        Args:
            part (`FeaturePart`): One of the model's.
            inputs: Those of `part.inputs` that there are.
        """
        ...
