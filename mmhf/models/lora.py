"""Low-rank changes of an encoder's layers, LoRA and DoRA, by peft.

Depends on torch, transformers, `errors` and `quantization` only, so that a release can carry this file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mmhf.errors import InputError
from mmhf.models.quantization import QuantizedLinear, quietly


def put_lora(encoder: PreTrainedModel, modules: Collection[str], values: Mapping[str, Any]) -> None:
    """Put low-rank changes into layers of an encoder; at first they change nothing.

    The encoder's own parameters require no gradient afterwards.

    Args:
        encoder (`PreTrainedModel`): Changed in place; on the meta device, too. Layers that have such a change already
            keep it.
        modules (`Collection[str]`): Names of its linear layers and convolutions.
        values (`Mapping`): `rank`, `alpha`, `dropout` and `dora`.

    Raises:
        `InputError`: peft is not installed.
    """
    try:
        with quietly():
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("the model has low-rank changes, which need peft: pip install 'mmhf[lora]'") from error
    layers = dict(encoder.named_modules())
    absent = [name for name in modules if f"{name}.base_layer" not in layers]
    if not absent:
        return
    config = LoraConfig(
        r=values["rank"],
        lora_alpha=values["alpha"],
        lora_dropout=values["dropout"],
        use_dora=values["dora"],
        # As one pattern: a list names ends of names, too.
        target_modules="|".join(map(re.escape, absent)),
        fan_in_fan_out=isinstance(layers[absent[0]], Conv1D),
    )
    with quietly():
        inject_adapter_in_model(config, encoder, low_cpu_mem_usage=encoder.device.type == "meta")


def merge_lora(encoder: PreTrainedModel) -> None:
    """Add an encoder's low-rank changes to its weights, for good; its parameters require gradients again."""
    for name, module in list(encoder.named_modules()):
        if name.endswith(".base_layer"):
            path = name.removesuffix(".base_layer")
            changed: Any = encoder.get_submodule(path)
            changed.merge(safe_merge=True)
            encoder.set_submodule(path, module)
    vars(encoder).pop("peft_config", None)
    encoder.requires_grad_(True)


def is_adaptable(module: nn.Module) -> bool:
    """Whether a layer can have a low-rank change that, but for weights of few bits, can be merged into it.

    These are linear layers and plain convolutions. A subclass may use its weights in another way, as attention of
    `nn.MultiheadAttention` does with `out_proj`, and peft's convolutions know neither groups nor dilation.
    """
    if type(module) is nn.Conv2d:
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return type(module) in (nn.Linear, Conv1D, QuantizedLinear)
