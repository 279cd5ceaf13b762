"""A captioner's step in bf16 on a CPU, its language model frozen, with and without what mmhf does about it.

SmolLM2-135M's shapes with random weights behind a linear projector, batch 32, 4 prefix tokens and 16 of captions.
Plain: autocast alone. Copies: frozen weights kept in bf16. Products: short attention as matrix products besides, as
training does. Time of forward and backward in one process, one thread, rounds alternate; losses agree to 1 %.

    python benchmarks/bf16_on_cpu.py [ROUNDS]
"""

import contextlib
import statistics
import sys
import time

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.training.frozen_copies import keep_copies, release_copies
from mmhf.training.short_attention import short_attention

BATCH, LENGTH = 32, 16
SMOLLM2_135M = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
# Small on purpose: training reads its answers from the store.
VISION = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
    "image_size": 32, "patch_size": 32,
}  # fmt: skip


def make_model():
    torch.manual_seed(0)
    config = PrefixCaptionerConfig(
        CLIPVisionConfig(**VISION), LlamaConfig(**SMOLLM2_135M), prefix_length=4, projector_hidden_dims=[]
    )
    model = PrefixCaptionerForConditionalGeneration(config)
    for part in (model.vision, model.language):
        part.requires_grad_(False)
    return model.train()


def step(model, images, input_ids, products):
    begun = time.perf_counter()
    with products, torch.autocast("cpu", torch.bfloat16):
        loss = model(images, input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    model.zero_grad()
    return time.perf_counter() - begun, loss.item()


def main():
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    model = make_model()
    images = torch.randn(BATCH, 3, 32, 32)
    input_ids = torch.randint(0, SMOLLM2_135M["vocab_size"], (BATCH, LENGTH))
    times, losses = {}, {}
    for _ in range(rounds + 1):  # the first one warms up
        for side in ("plain", "copies", "products"):
            if side != "plain":
                keep_copies(model, "bf16")
            products = short_attention(torch.device("cpu"), "bf16") if side == "products" else contextlib.nullcontext()
            seconds, losses[side] = step(model, images, input_ids, products)
            release_copies(model)
            times.setdefault(side, []).append(seconds)
    medians = {side: statistics.median(each[1:]) for side, each in times.items()}
    for side, seconds in medians.items():
        ratio = medians["plain"] / seconds
        print(f"{side:>8}: {seconds * 1e3:6.0f} ms, {BATCH / seconds:5.1f} samples/s, plain : this {ratio:.2f}")
    if max(losses.values()) > 1.01 * min(losses.values()):
        sys.exit(f"losses differ: {losses}")


if __name__ == "__main__":
    main()
