"""Models whose encoders have few bits, and what they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mmhf.models.quantization import QuantizedLinear


def with_whole_layers(encoder: PreTrainedModel) -> PreTrainedModel:
    """The same encoder, whose layers of few bits are plain ones with the same numbers."""
    twin = copy.deepcopy(encoder)
    for name, module in list(twin.named_modules()):
        if isinstance(module, QuantizedLinear):
            layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            layer.weight, layer.bias = nn.Parameter(module.weight.clone()), module.bias
            twin.set_submodule(name, layer)
    return twin


def in_few_bits(model: Any, bits: int = 8, library: str = "torchao", *, parts: Collection[str] = ()) -> Any:
    """The same model, these encoders of it in few bits; absent: all."""
    config = copy.deepcopy(model.config)
    for part in parts or model.encoders():
        setattr(config, f"{part}_quantization", {"bits": bits, "library": library})
    few = type(model)(config, *copy.deepcopy(list(model.encoders().values())))
    new = {name: each for name, each in model.state_dict().items() if name.partition(".")[0] not in model.encoders()}
    few.load_state_dict(new, strict=False)
    return few.eval()
