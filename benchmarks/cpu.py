"""Channels last and an allocator that keeps memory, against the plain setting: EfficientNet-Lite0 at 224 px.

One process, sides in turn; the plain side has glibc's thresholds where they end up by themselves (32 and 64 MiB) and
images channel by channel. `weights too` converts the model, which mmhf does not do. The aims: inference of 128 images
at least 3.5 times as fast as plain, a training step of 32 at least 2.3 times.

    python benchmarks/cpu.py [ROUNDS]
"""

import copy
import ctypes
import os
import statistics
import sys
import time

import mmhf  # noqa: F401  (before timm)

import torch  # isort: skip

from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.encoders import CHANNELS_LAST_SWITCH
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig

BACKBONE, SIDE = "timm/tf_efficientnet_lite0", 224
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
GLIBC = ctypes.CDLL(None)


def use_allocator(*, keeps):
    if keeps:
        done = GLIBC.mallopt(M_MMAP_MAX, 0) and GLIBC.mallopt(M_TRIM_THRESHOLD, -1)
    else:
        values = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
        done = min(GLIBC.mallopt(name, value) for name, value in values.items())
    assert done
    GLIBC.malloc_trim(0)


def make_model():
    torch.manual_seed(0)
    config = load_encoder_config(BACKBONE, pretrained=False, modality="image")
    names = {number: str(number) for number in range(12)}
    config = BackboneForImageClassificationConfig(vision_config=config, id2label=names, head_dropout=[0.0, 0.0])
    vision = load_encoder(BACKBONE, config.vision_config, pretrained=False)
    return BackboneForImageClassification(config, vision=vision)


@torch.inference_mode()
def infer(model, optimizer, images, labels):
    return model.eval()(pixel_values=images).logits


def train(model, optimizer, images, labels):
    loss = model.train()(pixel_values=images, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def main(rounds=3):
    model = make_model()
    converted = copy.deepcopy(model).to(memory_format=torch.channels_last)
    sides = {  # memory is kept, images are channels last, and weights, too
        "plain": (False, False, False),
        "channels last": (False, True, False),
        "allocator": (True, False, False),
        "both": (True, True, False),
        "both, weights too": (True, True, True),
    }
    optimizers = {id(each): torch.optim.AdamW(each.parameters(), lr=1e-6) for each in (model, converted)}
    for name, step, batch, aim in (("inference", infer, 128, 3.5), ("a training step", train, 32, 2.3)):
        images, labels = torch.randn(batch, 3, SIDE, SIDE), torch.arange(batch) % 12
        times = {side: [] for side in sides}
        for _ in range(rounds):
            for side, (keeps, is_last, with_weights) in sides.items():
                use_allocator(keeps=keeps)
                os.environ[CHANNELS_LAST_SWITCH] = "on" if is_last else "off"
                chosen = converted if with_weights else model
                for is_timed in (False, True):  # the first lets the allocator take what it will keep
                    begun = time.perf_counter()
                    step(chosen, optimizers[id(chosen)], images, labels)
                    if is_timed:
                        times[side].append(time.perf_counter() - begun)
        plain = statistics.median(times["plain"])
        for side, seconds in times.items():
            ratio = plain / statistics.median(seconds)
            shown = f" (aim {aim})" if side == "both" else ""
            print(f"{name}, {side}: {1e3 * statistics.median(seconds) / batch:.1f} ms an image: {ratio:.2f} x{shown}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
