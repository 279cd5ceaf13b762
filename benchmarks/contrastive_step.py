"""Time of one training step of a dual encoder: DualEncoderModel against open_clip's CLIP and transformers' CLIPModel.

All three have the same architecture (a small CLIP with random weights), batch, loss and optimizer, and take turns in
one process. Prints the ratios of their median times; the aim is at most 1.05 against either.

    pip install open_clip_torch
    python benchmarks/contrastive_step.py [ROUNDS]
"""

import statistics
import sys
import time

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import open_clip  # isort: skip
import torch
from open_clip.loss import ClipLoss
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel

PAIRS, PIXELS, PATCH, TOKENS, VOCABULARY, EMBEDDING = 16, 112, 16, 32, 8000, 256
VISION, TEXT = {"width": 384, "layers": 6, "heads": 6}, {"width": 256, "layers": 4, "heads": 4}


def sizes(tower):
    return {
        "hidden_size": tower["width"],
        "intermediate_size": 4 * tower["width"],
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": tower["heads"],
        "hidden_act": "gelu",
    }


def make_configs():
    vision = CLIPVisionConfig(image_size=PIXELS, patch_size=PATCH, **sizes(VISION))
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": VOCABULARY - 1}
    text = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **ids, **sizes(TEXT))
    return vision, text


def make_ours():
    vision, text = make_configs()
    config = DualEncoderConfig(
        vision, text, vision_pooling="pooler", text_pooling="eot", eot_token_id=VOCABULARY - 1, embedding_dim=EMBEDDING
    )
    model = DualEncoderModel(config)
    return model, lambda batch: model(**batch, return_loss=True).loss


def make_transformers():
    vision, text = make_configs()
    model = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=EMBEDDING))
    return model, lambda batch: model(**batch, return_loss=True).loss


def make_open_clip():
    vision = open_clip.CLIPVisionCfg(
        image_size=PIXELS, patch_size=PATCH, width=VISION["width"], layers=VISION["layers"], head_width=64
    )
    text = open_clip.CLIPTextCfg(
        context_length=TOKENS, vocab_size=VOCABULARY, width=TEXT["width"], layers=TEXT["layers"], heads=TEXT["heads"]
    )
    model, loss = open_clip.CLIP(EMBEDDING, vision, text), ClipLoss()
    return model, lambda batch: loss(*model(batch["pixel_values"], batch["input_ids"]))


def make_batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY - 1, (PAIRS, TOKENS), generator=generator)
    tokens[:, -1] = VOCABULARY - 1
    return {
        "pixel_values": torch.randn(PAIRS, 3, PIXELS, PIXELS, generator=generator),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


def main(rounds=15):
    batch, sides = make_batch(), {}
    for name, make in {"mmhf": make_ours, "open_clip": make_open_clip, "transformers": make_transformers}.items():
        torch.manual_seed(0)
        model, loss_of = make()
        sides[name] = (model.train(), loss_of, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))
    times = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, (_, loss_of, optimizer) in sides.items():
            begun = time.perf_counter()
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, seconds in medians.items():
        parameters = sum(parameter.numel() for parameter in sides[name][0].parameters())
        print(f"{name}: {1000 * seconds:.0f} ms a step, {parameters / 1e6:.2f} M parameters")
    ratios = [f"{medians['mmhf'] / medians[name]:.3f} times {name}'s" for name in ("open_clip", "transformers")]
    print(f"mmhf's step takes {' and '.join(ratios)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
