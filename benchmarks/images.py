"""From JPEG files to a normalised batch: mmhf's collator against PIL with torchvision's usual transforms.

JPEGs of 500 x 375 pixels, to 224 x 224, then of 1000 x 750. Rounds alternate in one process, on one thread. The rival
decodes, resizes, converts and normalises one image after the other, as most training scripts do. The aim: 2.4 times as
fast where simplejpeg is installed. `data.exact: false`, and what `mmhf prepare` packs by it, are shown with the
difference that they make.

    python benchmarks/images.py [ROUNDS [IMAGES]]
"""

import io
import os
import statistics
import sys
import time

import mmhf  # noqa: F401  (before torchvision)

import numpy as np  # isort: skip
import torch
from PIL import Image
from torchvision import transforms
from transformers import CLIPImageProcessor

from mmhf.data import pixels
from mmhf.data.collators import ImageCollator
from mmhf.data.preparing import scaled_image

SIDE = 224
MEAN, STD = [0.481, 0.457, 0.408], [0.268, 0.261, 0.275]


def make_rows(count, width=500, height=375):
    rng = np.random.default_rng(0)
    rows = []
    for row in range(count):
        # Shapes and a little noise: about 38 kB, as photographs of this size have.
        shapes = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(shapes).astype(int) + rng.integers(-6, 7, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        rows.append({"row": row, "id": str(row), "image": {"path": None, "bytes": buffer.getvalue()}, "stage": 0})
    return rows


def naive(rows):
    transform = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.stack([transform(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])


def race(rounds, count, sides):
    """Time sides that alternate, and print each beside the first."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.process_time()
            side()
            times[name].append(time.process_time() - begun)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    first = next(iter(seconds.values()))
    for name, each in seconds.items():
        print(f"{name}: {1e3 * each / count:.2f} ms an image: {first / each:.2f} x")


def main(rounds=5, count=64):
    torch.set_num_threads(1)
    rows = make_rows(count)
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False, image_mean=MEAN, image_std=STD)
    collator = ImageCollator(processor)

    def decoded_by(switch):
        os.environ[pixels.JPEG_SWITCH] = switch
        pixels._simplejpeg.cache_clear()
        return collator(rows)["pixel_values"]

    race(
        rounds,
        count,
        {
            "PIL and torchvision": lambda: naive(rows),
            "mmhf, Pillow": lambda: decoded_by("pillow"),
            "mmhf": lambda: decoded_by(""),
        },
    )
    by_pillow, by_default = decoded_by("pillow"), decoded_by("")
    difference = float((by_default - by_pillow).abs().max()) * max(STD) * 255
    print(f"decoder: {pixels.describe_jpeg_decoder()}; it changes a value by {difference:.4f} of 255 at most")

    large = make_rows(count // 4, 1000, 750)
    packed = [{**row, "image": {"path": None, "bytes": scaled_image(row["image"]["bytes"], SIDE)}} for row in large]
    inexact = ImageCollator(processor)
    inexact.least_side = SIDE
    print("of 1000 x 750 pixels:")
    sides = {
        "PIL and torchvision": lambda: naive(large),
        "mmhf": lambda: collator(large)["pixel_values"],
        "mmhf, data.exact: false": lambda: inexact(large)["pixel_values"],
        "mmhf, prepared with data.exact: false": lambda: inexact(packed)["pixel_values"],
    }
    race(rounds, len(large), sides)
    exact = sides["mmhf"]()
    for name in list(sides)[2:]:
        print(f"{name}: {float((sides[name]() - exact).abs().mean()) * max(STD) * 255:.2f} of 255 on average")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
