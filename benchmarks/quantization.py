"""A captioner's training step before a frozen language model in 8 and in 4 bits, against one in full precision.

The language model has SmolLM2-135M's sizes and random weights; a linear layer before it trains on stored image
features, batch 8, captions of 16 tokens. Under bf16 autocast, full weights have the bf16 copies that training keeps.
Beside them torchao's own layers in 8 bits. Memory is what the weights take and what autograd keeps for the
backward pass. Seconds of CPU a step, forward and backward, medians; in one process, rounds alternate.

    OMP_NUM_THREADS=1 python benchmarks/quantization.py [ROUNDS]
"""

import copy
import statistics
import sys
import time

import torch
from captioner_step import CLIP_VIT_B_32
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPVisionConfig

from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.pypi_backbones import pypi_config
from mmhf.models.quantization import quantize, require_library
from mmhf.training.frozen_copies import keep_copies, release_copies

BATCH, LENGTH, PREFIX = 8, 16, 10
FULL, THEIRS = "full precision", "8 bits, torchao's own layers"
OURS = {
    "8 bits": {"bits": 8, "library": "torchao"},
    "4 bits": {"bits": 4, "library": "torchao"},
    "4 bits, bitsandbytes": {"bits": 4, "library": "bitsandbytes"},
}
SIDES = (FULL, *OURS, THEIRS)


def make_models():
    """The same captioner, once for each side."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**{**CLIP_VIT_B_32, "num_hidden_layers": 1})
    config = PrefixCaptionerConfig(vision, pypi_config("smollm2-135m"), prefix_length=PREFIX, projector_hidden_dims=[])
    plain = PrefixCaptionerForConditionalGeneration(config).eval()
    plain.language.requires_grad_(False)
    models = {FULL: plain, **{side: copy.deepcopy(plain) for side in SIDES[1:]}}
    for side, values in OURS.items():
        quantize(models[side].language, values)
    torchao = require_library("torchao")
    torchao.quantize_(
        models[THEIRS].language,
        torchao.Int8WeightOnlyConfig(set_inductor_config=False),
        lambda module, name: isinstance(module, nn.Linear) and name != "lm_head",
    )
    return models


def size(tensor):
    """Bytes, those of torchao's tensors, too."""
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return tensor.numel() * tensor.element_size()
    return sum(size(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def step(model, inputs, *, autocast):
    """Seconds of CPU, the loss, and the bytes kept for the backward pass beside the parameters."""
    kept, own = {}, {each.data_ptr() for each in model.parameters() if type(each) is nn.Parameter}

    def keep(tensor):
        if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    began = time.process_time()
    low = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with saved_tensors_hooks(keep, lambda tensor: tensor), low:
        loss = model(**inputs).loss
    loss.backward()
    model.zero_grad()
    return time.process_time() - began, loss.item(), sum(kept.values())


def compare(models, inputs, rounds, *, autocast):
    found = {side: [] for side in SIDES}
    copies = keep_copies(models[FULL], "bf16") if autocast else 0
    for number in range(rounds + 1):
        for side in SIDES:
            measured = step(models[side], inputs, autocast=autocast)
            if number:  # the first one is for caches and kernels
                found[side].append(measured)
    if autocast:
        copies = keep_copies(models[FULL], "bf16")
        release_copies(models[FULL])
    losses = {side: rounds_[0][1] for side, rounds_ in found.items()}
    torch.testing.assert_close(losses["8 bits"], losses[THEIRS], rtol=2e-2 if autocast else 1e-5, atol=0)
    for side in ("4 bits", "4 bits, bitsandbytes"):
        torch.testing.assert_close(losses[side], losses[FULL], rtol=5e-2, atol=0)
    seconds = {side: statistics.median(each[0] for each in rounds_) for side, rounds_ in found.items()}
    weights = {side: sum(size(each) for each in models[side].language.parameters()) for side in SIDES}
    weights[FULL] += copies
    memory = {side: weights[side] + found[side][0][2] for side in SIDES}
    print(f"{'bf16 autocast' if autocast else 'fp32'}: loss {losses[FULL]:.3f}", flush=True)
    for side in SIDES:
        print(
            f"  {side}: weights {weights[side] / 2**20:.0f} MiB ({weights[FULL] / weights[side]:.2f} times smaller), "
            f"in a step {memory[side] / 2**20:.0f} MiB: ratio {memory[side] / memory[FULL]:.2f}; "
            f"{seconds[side]:.2f} s: ratio {seconds[side] / seconds[FULL]:.2f}",
            flush=True,
        )


def main(rounds=5):
    models = make_models()
    tokens = torch.randint(3, 49_000, (BATCH, LENGTH))
    inputs = {"image_features": torch.randn(BATCH, 512), "input_ids": tokens, "labels": tokens}
    for autocast in (False, True):
        compare(models, inputs, rounds, autocast=autocast)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
