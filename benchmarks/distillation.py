"""A step that learns from a teacher's stored answers against one without, of a classifier and a dual encoder.

The classifier is a small one (LCNet-0.5 at 96 pixels, 1,000 classes, batches of 32), of which the teacher's share of
the time is as large as it can be; the dual encoder that of quickstart/dual_encoder (256 pairs in micro-batches of 64),
taught by embeddings of 512. Both in their own trainers with AdamW, answers looked up in the store row by row. CPU time
per step, so that other programs do not count. All in one process, rounds alternate. The aim: at most 1.05.

    python benchmarks/distillation.py [ROUNDS]
"""

import copy
import math
import statistics
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
from lora_step import StepTimes
from transformers import TrainingArguments

from mmhf.conventions import TEACHER_ANSWERS, TEACHER_EMBEDS
from mmhf.data.datasets import RowDataset
from mmhf.data.digests import digest_texts
from mmhf.features.column import FeatureColumn
from mmhf.features.store import FeatureLayout, FeatureStore
from mmhf.models.dual_encoder.building import build_dual_encoder
from mmhf.models.image_classifier.building import build_image_classifier
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.distillation import Teaching
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

PIXELS, CLASSES, TOKENS, WIDTH = 96, 1000, 16, 512
SHAPES = {MMTrainer: (32, 1, 20), ContrastiveTrainer: (64, 4, 4)}
"""Rows of a micro-batch, micro-batches of a step, steps of a round."""
PICTURES = torch.randn(256, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))


def make_classifier():
    section = {"vision": {"backbone": "timm/lcnet_050", "pretrained": False}, "head": {"hidden_dim": None}}
    names = [str(number) for number in range(CLASSES)]
    return build_image_classifier(
        ImageClassifierModelSection.model_validate(section), label_names=names, image_size=PIXELS
    )


def make_dual_encoder():
    towers = {
        "vision": {"patch_size": 16, "width": 128, "layers": 4, "heads": 4, "pooling": "avg"},
        "text": {"width": 128, "layers": 2, "heads": 4, "vocab_size": 2000},
        "embedding_dim": 128,
    }
    data = {"source": "sample", "image_size": PIXELS, "max_length": TOKENS}
    return build_dual_encoder(
        recipe_from_dict({"task": "contrastive", "model": towers, "data": data}, name="benchmark").recipe
    )


def collate(rows):
    numbers = torch.tensor([row["row"] for row in rows])
    tokens = (numbers[:, None] * 7 + torch.arange(TOKENS)) % 1990 + 3
    tokens[:, -1] = 1
    batch = {"pixel_values": PICTURES[numbers % len(PICTURES)]}
    if "label" in rows[0]:
        batch["labels"] = numbers % CLASSES
    else:
        batch |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "image_index": numbers}
    taught = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name.startswith("teacher_")}
    return {**batch, **taught}


def make_rows(trainer_class, folder):
    """Rows, and with a folder a teacher's answers to them in a store."""
    count = math.prod(SHAPES[trainer_class])
    columns = {"row": list(range(count))}
    if trainer_class is MMTrainer:
        columns["label"] = columns["row"]
    rows = RowDataset(datasets.Dataset.from_dict(columns))
    names = {TEACHER_ANSWERS: CLASSES} if trainer_class is MMTrainer else dict.fromkeys(TEACHER_EMBEDS, WIDTH)
    for name, width in {} if folder is None else names.items():
        store = FeatureStore(folder / f"{trainer_class.__name__}-{name}", FeatureLayout((width,), torch.float32))
        digests = digest_texts(map(str, range(count)))
        store.append(digests, torch.nn.functional.normalize(torch.randn(count, width), dim=1))
        store.refresh()
        column = FeatureColumn(name, "image", store, torch.float32, digests)
        column.bind()
        assert np.all(column.positions >= 0)
        rows.beside[name] = column
    return rows


def train(trainer_class, model, rows, teaching):
    size, accumulation, steps = SHAPES[trainer_class]
    plan = StagePlan.build(model, [Stage(name="all", steps=steps, learning_rate=1e-4)], steps_per_epoch=steps)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=size, use_cpu=True, save_strategy="no",
            gradient_accumulation_steps=accumulation, remove_unused_columns=False, dataloader_pin_memory=False,
            logging_steps=100, disable_tqdm=True, log_level="error", weight_decay=0.01,
        )  # fmt: skip
        trainer_class(
            model=model, args=args, plan=plan, train_dataset=rows, data_collator=collate, callbacks=[times],
            teaching=teaching,
        ).train()  # fmt: skip
    return times.times


def main(rounds=5):
    teaching = Teaching(weight=0.5, temperature=2.0)
    kinds = {"classifier": (MMTrainer, make_classifier()), "dual encoder": (ContrastiveTrainer, make_dual_encoder())}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (trainer_class, model) in kinds.items():
            sides = {"taught": (make_rows(trainer_class, Path(scratch)), teaching)}
            sides["alone"] = make_rows(trainer_class, None), None
            times = {side: [] for side in sides}
            for _ in range(rounds):
                for side, (rows, how) in sides.items():
                    times[side] += train(trainer_class, copy.deepcopy(model), rows, how)
            taught, alone = (statistics.median(times[side]) for side in ("taught", "alone"))
            shown = f"with a teacher {1000 * taught:.1f} ms, without {1000 * alone:.1f} ms"
            print(f"{name}, a step: {shown}: ratio {taught / alone:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
