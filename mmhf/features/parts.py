"""The parts of a model whose outputs `forward` takes in place of what they are computed from.

Depends on torch, transformers, `conventions`, `boundaries` and `layer_groups` only, so that a release can carry this
file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmhf.conventions import ImageSize
from mmhf.features.boundaries import Boundary, find_boundary, is_exact, is_traced_for, run_above, run_below
from mmhf.models.layer_groups import layer_of


@dataclass(frozen=True)
class FeaturePart:
    """A part of a model that can be computed once, while all of it is frozen.

    Attributes:
        name (`str`): `vision` or `text`. The part's parameter groups are those that start with this and a dot, up to
            `boundary`; see `HasFeatureParts.part_groups`.
        inputs (`tuple[str, ...]`): Arguments of `forward` that it is computed from.
        feature (`str`): Argument of `forward` that takes its output in their place.
        boundary (`str`, *optional*): The last parameter group of the part, such as `vision.stages.3`; absent, the
            whole encoder, with the pooling that is not learnt.
        image_size ([`ImageSize`], *optional*): Of the images, where there is a boundary.
    """

    name: str
    inputs: tuple[str, ...]
    feature: str
    boundary: str | None = None
    image_size: ImageSize | None = None


VISION = FeaturePart("vision", ("pixel_values",), "image_features")
"""A whole image encoder."""

TEXT = FeaturePart("text", ("input_ids", "attention_mask"), "text_features")
"""A whole text encoder."""


class HasFeatureParts:
    """Base of models whose `forward` takes the outputs of parts of them.

    For a part of any kind: `model.use_part(part)`, once, then `model(**{part.feature: features}, **others)`, where
    `features` are rows of what `model.compute_features(part, **inputs)` gave, in the dtype that it had. Which part is
    in use is neither part of the config nor saved.
    """

    vision: Any
    vision_output: Any
    _part_in_use: FeaturePart | None = None
    _boundary: tuple[FeaturePart, Boundary] | None = None

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """What the model reads of its image encoder: (B, 3, H, W) → (B, ...)."""
        raise NotImplementedError

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the model reads of its text encoder: (B, T) → (B, width)."""
        raise NotImplementedError

    def feature_parts(self) -> tuple[FeaturePart, ...]:
        """The whole encoders, in the order of `forward`'s arguments."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[str]]:
        """Ordered group name → parameter names."""
        raise NotImplementedError

    def part_groups(self, part: FeaturePart) -> tuple[str, ...]:
        """The parameter groups of a part: those that must not train while its features are used."""
        groups = [group for group in self.parameter_groups() if group.startswith(f"{part.name}.")]
        if part.boundary is None:
            return tuple(groups)
        layers = [group for group in groups if layer_of(group) == group]
        below = layers[: layers.index(part.boundary) + 1]
        return tuple(group for group in groups if layer_of(group) in below)

    def part_below(
        self, part: FeaturePart, trained: Collection[str], *, image_size: ImageSize | None = None
    ) -> FeaturePart | None:
        """The largest part of an encoder that stays as it is while some groups train.

        Args:
            part (`FeaturePart`): One of `feature_parts()`.
            trained (`Collection[str]`): Parameter groups that train.
            image_size ([`ImageSize`], *optional*): Of the images; absent, the whole encoder or nothing.

        Returns:
            `FeaturePart`, or `None`: `part` itself where nothing of it trains; else, for an image encoder, what ends
            at the highest boundary below the first group that trains at which going on is proven exact, on this
            encoder, now.
        """
        layers = [group for group in self.part_groups(part) if layer_of(group) == group]
        changing = {layer_of(group) for group in trained}
        first = next((number for number, layer in enumerate(layers) if layer in changing), None)
        if first is None:
            return part
        if part.name != VISION.name or image_size is None:
            return None
        for boundary in reversed(layers[:first]):
            below = replace(part, feature="image_hidden", boundary=boundary, image_size=image_size)
            if self._find(below) is not None:
                return below
        return None

    def compute_features(self, part: FeaturePart, **inputs: Tensor) -> Tensor:
        """What `forward` would compute of a part for these inputs: (B, ...), in the dtype it would have there.

        Args:
            part (`FeaturePart`): One of `feature_parts()`, or what `part_below` made of it; nothing else is run.
            inputs: Those of `part.inputs` that there are.

        Raises:
            `ValueError`: the encoder cannot be cut there.
        """
        if part.name != VISION.name:
            return self.text_features(**inputs)
        if part.boundary is None:
            return self.image_features(**inputs)
        return run_below(self.vision, self.image_features, self._boundary_of(part), inputs["pixel_values"])

    def use_part(self, part: FeaturePart | None) -> None:
        """Say what `image_hidden` is from now on: features at this part's boundary.

        Args:
            part (`FeaturePart`, *optional*): A part with a boundary; others need not be said, and absent or without a
                boundary, no `image_hidden` is understood.

        Raises:
            `ValueError`: the encoder cannot be cut there.
        """
        if part is not None and part.boundary is not None:
            self._boundary_of(part)
            self._part_in_use = part
        elif part is None or part.name == VISION.name:
            self._part_in_use = None

    def resumed_image_features(self, image_hidden: Tensor) -> Tensor:
        """From features at the boundary of the part in use to `image_features`; nothing below it is computed.

        Args:
            image_hidden (`Tensor`): (B, ...).

        Raises:
            `ValueError`: no part with a boundary is in use.
        """
        if self._part_in_use is None:
            raise ValueError("image_hidden needs use_part() with the part that it was computed of")
        return run_above(self.vision, self.image_features, self._boundary_of(self._part_in_use), image_hidden)

    def _boundary_of(self, part: FeaturePart) -> Boundary:
        boundary = self._find(part)
        if boundary is None:
            raise ValueError(f"the image encoder cannot go on exactly from the end of {part.boundary}")
        return boundary

    def _find(self, part: FeaturePart) -> Boundary | None:
        if self._boundary is not None:
            known, boundary = self._boundary
            if known == part and is_traced_for(boundary, self.vision):
                return boundary
        assert part.boundary is not None
        assert part.image_size is not None
        group = part.boundary.removeprefix(f"{part.name}.")
        found = find_boundary(self.vision, self.image_features, group, image_size=part.image_size)
        if found is None or not is_exact(self.vision, self.image_features, found):
            return None
        self._boundary = (part, found)
        return found
