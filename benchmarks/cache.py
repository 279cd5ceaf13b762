"""A head-only stage on stored features against one that computes them: EfficientNet-B0 at 224 px, random weights.

One thread, one process, sides in turn, in the process's own time, so that other programs do not count. The aims: an
epoch on a filled cache takes at most 1/2500 of a computed one, ten epochs with the building at most 1/9 of ten
computed ones, the epoch that builds at most 1.1 of a plain one. Rows repeat in the epoch on the filled cache, so that
it has the batches of a larger data set (1,024 rows: a step of Trainer alone costs as much as some hundred rows); the
head is one linear layer. Reading random rows, and opening a large store,
are measured by `benchmarks/feature_store.py`.

    python benchmarks/cache.py [ROUNDS]
"""

import copy
import functools
import io
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, TrainerCallback, TrainingArguments

import mmhf  # noqa: F401  (before timm)
from mmhf.data.collators import ImageCollator, RandomChanges
from mmhf.data.datasets import RowDataset
from mmhf.data.table import IMAGE_FEATURE
from mmhf.features.choice import CacheSetting, choose_parts
from mmhf.features.stage import StageFeatures
from mmhf.models.backbones import load_encoder, load_encoder_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.recipe.training_sections import CacheSection
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

SIDE = 224
ROWS, BATCH = 96, 32
REPEATED, LARGE_BATCH = 256, 1024
BACKBONE = "timm/efficientnet_b0"


def make_rows():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(ROWS):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=80)
        images.append({"path": None, "bytes": buffer.getvalue()})
    columns = {"row": list(range(ROWS)), "id": [str(row) for row in range(ROWS)], "image": images}
    features = datasets.Features(
        {"row": datasets.Value("int64"), "id": datasets.Value("string"), "image": IMAGE_FEATURE,
         "label": datasets.Value("int64")}
    )  # fmt: skip
    return datasets.Dataset.from_dict({**columns, "label": [row % 4 for row in range(ROWS)]}, features=features)


def make_model():
    torch.manual_seed(0)
    config = load_encoder_config(BACKBONE, pretrained=False, modality="image")
    names = {number: str(number) for number in range(4)}
    return BackboneForImageClassification(
        BackboneForImageClassificationConfig(vision_config=config, id2label=names, head_dropout=[0.0, 0.0]),
        vision=load_encoder(BACKBONE, config, pretrained=False),
    )


class EpochTimes(TrainerCallback):
    """Seconds of each epoch."""

    def __init__(self):
        self.times = []

    def on_train_begin(self, *args, **kwargs):
        self.begun = time.process_time()  # features are computed before the first epoch, and count as part of it

    def on_epoch_begin(self, *args, **kwargs):
        if self.times:
            self.begun = time.process_time()

    def on_epoch_end(self, *args, **kwargs):
        self.times.append(time.process_time() - self.begun)


def train(model, rows, epochs, batch, folder):
    """Seconds of each epoch, and of all that stands around them."""
    dataset = RowDataset(rows)
    steps = len(rows) // batch
    plan = StagePlan.build(model, [Stage(name="head", epochs=float(epochs), train="head")], steps_per_epoch=steps)
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
    cache = None
    if folder is not None:
        places = {"image": len(rows)}
        setting = CacheSetting(
            CacheSection(mode="on", folder=str(folder)), lambda stage: RandomChanges(), (), len(rows), places, {}, SIDE
        )
        cache = StageFeatures(
            model, functools.partial(choose_parts, plan, setting), setting, processor=processor,
            example_inputs={"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}, augmentations=[""],
        )  # fmt: skip
    times = EpochTimes()
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=scratch, max_steps=plan.num_steps, per_device_train_batch_size=batch, use_cpu=True,
            save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=1000,
            disable_tqdm=True, log_level="error", dataloader_drop_last=True,
        )  # fmt: skip
        MMTrainer(
            model=model, args=args, plan=plan, train_dataset=dataset, data_collator=ImageCollator(processor),
            features=cache, callbacks=[times],
        ).train()  # fmt: skip
    return times.times, time.process_time() - begun


def main(rounds=2):
    torch.set_num_threads(1)
    logging.getLogger("mmhf").setLevel(logging.ERROR)
    rows, model = make_rows(), make_model()
    many = datasets.concatenate_datasets([rows] * REPEATED)
    plain, built, filled, stages = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            folder = Path(scratch) / str(number)
            epochs, _ = train(copy.deepcopy(model), rows, 1, BATCH, None)
            plain += epochs
            epochs, seconds = train(copy.deepcopy(model), rows, 10, BATCH, folder)
            built.append(epochs[0])
            stages.append(seconds)
            epochs, _ = train(copy.deepcopy(model), many, 2, LARGE_BATCH, folder)
            filled.append(min(epochs))
    image, stored = statistics.median(plain) / ROWS, statistics.median(filled) / ROWS / REPEATED
    print(f"a computed epoch: {1e3 * image:.1f} ms an image; on a filled cache {1e6 * stored:.1f} us")
    print(f"an epoch on a filled cache: {image / stored:,.0f} times as fast (aim 2500)")
    building = statistics.median(each / other for each, other in zip(built, plain, strict=True))
    print(f"the epoch that builds it: {building:.2f} of a plain one (aim 1.1)")
    whole = 10 * statistics.median(plain) / statistics.median(stages)
    print(f"ten epochs, hashing and building included: {whole:.1f} times as fast as computing (aim 9)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
