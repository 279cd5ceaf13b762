"""From mmhf.inference.probabilities of mmhf 0.1.0, made by `mmhf release`; with mmhf installed this file is not used."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

def class_probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in double precision: (…, C) logits of any dtype to (…, C) float64 on the CPU."""
    return torch.softmax(logits.detach().cpu().double(), dim=-1)


def class_names(model: PreTrainedModel) -> list[str]:
    """Names of the classes in the order of their ids."""
    names = model.config.id2label or {}
    return [str(name) for _, name in sorted(names.items())]
