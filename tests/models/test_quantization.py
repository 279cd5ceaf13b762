"""Layers of few bits compute what the libraries' own do, and keep nothing in full precision for the backward pass."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
from few_bits import with_whole_layers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4
from torchvision.models import SwinTransformer
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
)

from mmhf.errors import InputError
from mmhf.models.encoders import fresh_encoder, run_vision, timm_config
from mmhf.models.quantization import QuantizedLinear, describe_quantized, quantize, quietly
from mmhf.models.torchvision_encoder import TorchvisionConfig, TorchvisionEncoder

KINDS = ((8, "torchao"), (4, "torchao"), (4, "bitsandbytes"))
WIDTHS = (64, 96)


def linear(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*WIDTHS, bias=bias).requires_grad_(False).to(dtype)


def by_library(layer: nn.Linear, bits: int, library: str) -> nn.Linear:
    theirs = copy.deepcopy(layer)
    if library == "bitsandbytes":
        like = {"compute_dtype": layer.weight.dtype, "compress_statistics": False, "quant_type": "nf4"}
        theirs = bitsandbytes.nn.Linear4bit(*WIDTHS, bias=layer.bias is not None, **like)
        theirs.load_state_dict(layer.state_dict())
        return theirs.to("cpu")  # which rounds them
    if bits == 8:
        quantize_(theirs, Int8WeightOnlyConfig(set_inductor_config=False))
    else:
        theirs.weight = nn.Parameter(to_nf4(theirs.weight, 64, 96), requires_grad=False)
    return theirs


@pytest.mark.parametrize(("bits", "library"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_librarys_to_the_bit(bits: int, library: str, bias: bool, dtype: torch.dtype) -> None:
    layer = linear(bias=bias, dtype=dtype)
    ours, theirs = QuantizedLinear(layer, bits, library), by_library(layer, bits, library)
    given = [torch.randn(2, 5, WIDTHS[0], dtype=dtype).requires_grad_() for _ in range(2)]
    given[1].data.copy_(given[0].data)
    made = [module(inputs) for module, inputs in zip((ours, theirs), given, strict=True)]
    assert made[0].dtype == dtype
    if bias and library == "bitsandbytes" and dtype == torch.bfloat16:  # it adds the bias before it rounds
        torch.testing.assert_close(*made, rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(*made)
    wanted = torch.randn_like(made[0])
    for each in made:
        each.backward(wanted)
    assert torch.equal(given[0].grad, given[1].grad)
    # What is lost by rounding is what so few bits lose, not more.
    distance = (ours(given[0]) - layer(given[0])).norm() / layer(given[0]).norm()
    assert 1e-4 < distance < (0.02 if bits == 8 else 0.15)


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_the_backward_pass_reads_few_bits(bits: int, library: str) -> None:
    """torchao's own layer keeps its weights in full precision, in 8 bits."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    inputs = torch.randn(3, WIDTHS[0], requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        QuantizedLinear(linear(), bits, library)(inputs).sum()
    assert sum(each.numel() * each.element_size() for each in kept) < WIDTHS[0] * WIDTHS[1] * (bits / 8 + 0.2)
    if bits == 8:
        kept.clear()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            by_library(linear(), bits, library)(inputs).sum()
        assert any(each.numel() == WIDTHS[0] * WIDTHS[1] and each.dtype == torch.float32 for each in kept)


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_autocast_decides_the_precision(bits: int, library: str) -> None:
    ours = QuantizedLinear(linear(), bits, library)
    inputs = torch.randn(3, WIDTHS[0], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(inputs)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), ours(inputs), rtol=3e-2, atol=3e-2)
    made.sum().backward()
    assert inputs.grad is not None and inputs.grad.dtype == torch.float32


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_a_layer_is_copied_pickled_cast_and_saved_like_any_other(bits: int, library: str) -> None:
    ours, inputs = QuantizedLinear(linear(), bits, library), torch.randn(3, WIDTHS[0])
    assert all(type(each) is torch.Tensor for each in ours.state_dict().values())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(inputs), ours(inputs))
    with torch.device("meta"):
        empty = QuantizedLinear(nn.Linear(*WIDTHS), bits, library)
    shapes = {name: (each.shape, each.dtype) for name, each in ours.state_dict().items()}
    assert shapes == {name: (each.shape, each.dtype) for name, each in empty.state_dict().items()}
    loaded = empty.to_empty(device="cpu")
    loaded.load_state_dict(ours.state_dict())
    assert torch.equal(loaded(inputs), ours(inputs))
    low = copy.deepcopy(ours).to(torch.bfloat16)
    integers = [name for name in ours.names if not ours.get_parameter(name).is_floating_point()]
    assert integers
    for name in integers:
        assert torch.equal(low.get_parameter(name), ours.get_parameter(name))
        with pytest.raises(RuntimeError, match="floating point"):
            ours.get_parameter(name).requires_grad_()
    assert low(inputs.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_who_reads_the_weights_reads_numbers(bits: int, library: str) -> None:
    layer, inputs = linear(), torch.randn(3, WIDTHS[0])
    ours = QuantizedLinear(layer, bits, library)
    assert ours.weight.shape == layer.weight.shape and ours.weight.dtype == torch.float32
    torch.testing.assert_close(functional.linear(inputs, ours.weight, ours.bias), ours(inputs))
    assert ours.to(torch.bfloat16).weight.dtype == torch.bfloat16
    empty = QuantizedLinear(nn.Linear(*WIDTHS, device="meta"), bits, library)
    assert empty.weight.is_meta and empty.weight.shape == layer.weight.shape


def beit() -> PreTrainedModel:
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    return fresh_encoder(timm_config("beit_base_patch16_224", {}, sizes))


def swin_2() -> PreTrainedModel:
    sizes = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": 32, "window_size": 4}
    return fresh_encoder(timm_config("swinv2_tiny_window8_256", {}, sizes))


def swin_of_torchvision() -> PreTrainedModel:
    encoder = TorchvisionEncoder(TorchvisionConfig("swin_t", image_size=32))
    encoder.model = SwinTransformer([4, 4], 16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=2)
    return encoder


def siglip_2() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModel.from_config(Siglip2VisionConfig(**sizes, num_patches=4, patch_size=16))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("make", [beit, swin_2, swin_of_torchvision, siglip_2])
def test_encoders_that_use_the_weights_of_their_layers_themselves(make: Callable[[], Any], bits: int) -> None:
    torch.manual_seed(0)
    full = make().eval()
    few = copy.deepcopy(full)
    quantize(few, {"bits": bits, "library": "torchao"})
    attention = [each for each in few.modules() if isinstance(each, nn.MultiheadAttention)]
    assert all(type(each.out_proj) is type(nn.MultiheadAttention(2, 1).out_proj) for each in attention)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # The pooled output goes through the head of SigLIP 2, which has such attention.
        outputs = [run_vision(each, images, "pooler").pooler_output for each in (few, with_whole_layers(few), full)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert not torch.equal(outputs[0], outputs[2])


def qwen() -> Qwen3ForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=16))


@pytest.mark.parametrize(("bits", "library"), KINDS)
def test_of_a_language_model_all_linear_layers_but_the_head_are_rounded(bits: int, library: str) -> None:
    model = qwen()
    names = {name for name, each in model.named_modules() if isinstance(each, nn.Linear)} - {"lm_head"}
    quantize(model, {"bits": bits, "library": library})
    found = {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLinear)}
    assert found.keys() == names and len(names) == 2 * 7
    quantize(model, {"bits": bits, "library": library})
    assert all(model.get_submodule(name) is each for name, each in found.items())
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert describe_quantized(model).startswith(f"model: {weights:,} weights in {bits} bits, 0.0 MiB")
    assert describe_quantized(qwen()) == ""


def test_what_cannot_be_rounded_is_named() -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 99}
    with pytest.raises(InputError, match=r"a gpt2 has no linear layers that could have 8 bits; leave"):
        quantize(GPT2Model(GPT2Config(**sizes)), {"bits": 8, "library": "torchao"})
    model = qwen()
    model.get_submodule("model.layers.0.self_attn.q_proj").weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj cannot have 8 bits: its weights have no fin"):
        quantize(model, {"bits": 8, "library": "torchao"})


def test_layers_that_have_no_blocks_keep_their_weights() -> None:
    model = qwen()
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 63, bias=False)
    quantize(model, {"bits": 4, "library": "torchao"})
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert type(model.model.layers[1].mlp.up_proj) is QuantizedLinear


def test_without_a_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, extra in (("torchao", "quantization"), ("bitsandbytes", "bitsandbytes")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InputError, match=rf"^weights in few bits need {library}: pip install 'mmhf\[{extra}\]'$"):
            quantize(qwen(), {"bits": 4, "library": library})


def test_of_bitsandbytes_only_missing_kernels_are_kept_silent(caplog: pytest.LogCaptureFixture) -> None:
    with quietly():
        for name, message in (("backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"), ("cextension", "heard")):
            logging.getLogger(f"bitsandbytes.{name}").warning(message)
    assert caplog.messages == ["heard"]


@pytest.mark.slow
def test_libraries_are_loaded_where_they_are_used_and_without_a_word() -> None:
    program = (
        "import json, sys, mmhf, transformers.trainer, peft\n"
        "from transformers.quantizers import quantizer_torchao as theirs\n"
        "before = [name for name in ('torchao', 'bitsandbytes') if name in sys.modules]\n"
        "known = peft.import_utils.is_bnb_available()\n"
        "from transformers import BertConfig, BertModel\n"
        "from mmhf.models.lora import put_lora\n"
        "from mmhf.models.quantization import require_library\n"
        "bert = BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=9))\n"
        "values = {'rank': 1, 'alpha': 1.0, 'dropout': 0.0, 'dora': False}\n"
        "put_lora(bert, ['encoder.layer.0.attention.self.query'], values)\n"
        "loaded = [require_library(name) for name in ('torchao', 'bitsandbytes')]\n"
        "known = known and theirs.is_torchao_available() and peft.helpers.bnb.functional is loaded[1].functional\n"
        "print(json.dumps([before, 'torchao' in sys.modules, known, len(theirs.flatten_tensor_state_dict({}))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], True, True, 2]
    assert "Failed to load" not in done.stderr and "KernelPreference" not in done.stderr
