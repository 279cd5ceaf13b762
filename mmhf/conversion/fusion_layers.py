"""The layers between two encoders and the classes, as the fake-news and the dermatology program have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmhf.conversion.checkpoint import Checkpoint, Linear
from mmhf.conversion.encoders import check_chain, take_chain
from mmhf.errors import InputError

_GATES = ("alpha_vision", "alpha_text")
_AUXILIARY = {"vision": "image", "image": "image", "text": "text"}


@dataclass
class FusionLayers:
    """The new layers of a fusion classifier, in order.

    Attributes:
        image, text (`list[Linear]`): The projections.
        hidden (`list[Linear]`): Behind the fused embedding.
        last (`Linear`): The classifier; one output is the logit of the second of two classes.
        gates (`list[str]`): Names of two scalars, whose softmax weighs image and text; empty: both are concatenated.
        auxiliary (`dict[str, Linear]`): `image`, `text` → a classifier of that modality alone.
    """

    image: list[Linear]
    text: list[Linear]
    hidden: list[Linear]
    last: Linear
    gates: list[str]
    auxiliary: dict[str, Linear]

    @classmethod
    def find(cls, checkpoint: Checkpoint, image_width: int, text_width: int) -> FusionLayers:
        """Find the layers: the projections by what they read, in their order, and all others behind them.

        Raises:
            InputError: They do not follow from each other.
        """
        path, groups = checkpoint.path, checkpoint.linears()
        auxiliary = {}
        for group in [group for group in groups if len(group) == 1 and "aux" in group[0].weight]:
            modality = next((_AUXILIARY[word] for word in _AUXILIARY if word in group[0].weight), None)
            if modality is not None:
                auxiliary[modality] = group[0]
                groups.remove(group)
        image = next((group for group in groups if group[0].inputs == image_width), None)
        text = next((group for group in groups if group is not image and group[0].inputs == text_width), None)
        if image is None or text is None:
            missing, width = ("image", image_width) if image is None else ("text", text_width)
            raise InputError(f"{path}: no {missing} projection in it, a linear layer of {width} inputs")
        rest = [linear for group in groups if group is not image and group is not text for linear in group]
        gates = [name for ending in _GATES for name in checkpoint.left() if name.endswith(ending)]
        width = image[-1].outputs
        fused = width if gates else 2 * width
        if text[-1].outputs != width or not rest or rest[0].inputs != fused:
            given = f"{rest[0].inputs} inputs of {rest[0].weight}" if rest else "nothing"
            raise InputError(
                f"{path}: projections to {width} and {text[-1].outputs} numbers are followed by {given}, where "
                f"{fused} were expected"
            )
        for what, chain in (("image projection", image), ("text projection", text), ("fusion", rest)):
            check_chain(checkpoint, chain, what)
            checkpoint.notes.append(f"{what}: {', '.join(linear.weight for linear in chain)}")
        return cls(image, text, rest[:-1], rest[-1], gates, auxiliary)

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return max(self.last.outputs, 2)

    def model_section(self, activation: str, dropout: float, projection_dropout: float) -> dict[str, Any]:
        """Of the recipe's `model:`, what the layers say; dropouts are halved from one hidden layer to the next."""
        hidden = [linear.outputs for linear in self.hidden]
        rates = [round(dropout / 2**index, 4) for index in range(len(hidden))] if len(hidden) > 1 else dropout
        section: dict[str, Any] = {
            "embedding_dim": self.image[-1].outputs,
            "fusion": {
                "strategy": "weighted_sum" if self.gates else "concat_mlp",
                "hidden_dims": hidden,
                "activation": activation,
                "dropout": rates,
            },
        }
        for key, chain in (("image_projection", self.image), ("text_projection", self.text)):
            if len(chain) > 1:
                widths = [linear.outputs for linear in chain[:-1]]
                section[key] = {"hidden_dims": widths, "activation": activation, "dropout": projection_dropout}
        return section

    def tensors(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The layers under the names of [`FusionForImageTextClassification`]."""
        taken = take_chain(checkpoint, self.image, "vision_projection")
        taken |= take_chain(checkpoint, self.text, "text_projection")
        for index, linear in enumerate(self.hidden):
            taken |= checkpoint.take_linear(linear, f"fusion.hidden.{3 * index}")
        taken |= {name: both_classes(tensor) for name, tensor in checkpoint.take_linear(self.last, "head").items()}
        for modality, linear in self.auxiliary.items():
            classifier = checkpoint.take_linear(linear, f"auxiliary_heads.{modality}")
            taken |= {name: both_classes(tensor) for name, tensor in classifier.items()}
        if self.gates:
            gates = checkpoint.take(dict(zip(_GATES, self.gates, strict=True)))
            taken["fusion.modality_weights"] = torch.stack([gates[name].reshape(()) for name in _GATES])
        return taken


def both_classes(tensor: Tensor) -> Tensor:
    """One logit, for a sigmoid, as those of two classes, for a softmax: the first class's is 0."""
    return torch.cat([torch.zeros_like(tensor), tensor]) if len(tensor) == 1 else tensor
