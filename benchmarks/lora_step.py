"""A step that trains low-rank changes of an encoder against one that trains all of its weights.

A ViT-S/16, or another model of timm's (random weights, 128 pixels), and a classifier's head, both in MMTrainer with
AdamW, LoRA of rank 16 on its attention, and on every linear layer beside it. CPU time per step, so that other programs
do not count, and peak memory of what a step adds to the weights: gradients, optimizer state and activations. All in
one process, rounds alternate. The aims: at most 0.8 of the time and 0.6 of the memory.

    python benchmarks/lora_step.py [ROUNDS [BACKBONE]]
"""

import copy
import statistics
import sys
import tempfile
import time

import datasets
import torch
from frozen_stage import PeakMemory
from transformers import TrainerCallback, TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.models.image_classifier.building import build_image_classifier
from mmhf.recipe.image_classifier_recipe import ImageClassifierModelSection
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

BATCH, STEPS, PIXELS = 8, 5, 128


class StepTimes(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, args, state, control, **kwargs):
        now = time.process_time()
        if state.global_step > 0:
            self.times.append(now - self.begun)
        self.begun = now


def make_model(backbone, lora):
    torch.manual_seed(0)
    section = {"vision": {"backbone": backbone, "pretrained": False}, "lora": lora}
    return build_image_classifier(
        ImageClassifierModelSection.model_validate(section), label_names=["no", "yes"], image_size=PIXELS
    )


def collate(rows):
    generator = torch.Generator().manual_seed(rows[0]["index"])
    return {
        "pixel_values": torch.randn(len(rows), 3, PIXELS, PIXELS, generator=generator),
        "labels": torch.randint(0, 2, (len(rows),), generator=generator),
    }


def train(model, rows, selectors):
    plan = StagePlan.build(
        model, [Stage(name="one", steps=STEPS, train=selectors, learning_rate=1e-4)], steps_per_epoch=STEPS
    )
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, use_cpu=True, save_strategy="no",
            remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=10, disable_tqdm=True,
            log_level="error", weight_decay=0.01,
        )  # fmt: skip
        MMTrainer(
            model=model, args=args, plan=plan, train_dataset=rows, data_collator=collate, callbacks=[times]
        ).train()
    return times.times


def main(rounds="3", backbone="timm/vit_small_patch16_224"):
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(BATCH * STEPS))}))
    attention, trained = {"rank": 16, "target_modules": ["qkv", "attn.proj"]}, ["head", "vision.lora"]
    sides = {
        "LoRA": (make_model(backbone, attention), trained),
        "LoRA everywhere": (make_model(backbone, {"rank": 16}), trained),
        "all weights": (make_model(backbone, None), ["all"]),
    }
    times = {name: [] for name in sides}
    for _ in range(int(rounds)):
        for name, (model, selectors) in sides.items():
            times[name] += train(copy.deepcopy(model), rows, selectors)
    memory = {}
    for name, (model, selectors) in sides.items():
        fresh = copy.deepcopy(model)
        with PeakMemory() as peak:
            train(fresh, rows, selectors)
        memory[name] = peak.mib
    speed = {name: statistics.median(each) for name, each in times.items()}
    for title, found, unit in (("a step", speed, "s"), ("beside the weights", memory, "MiB")):
        ours, everywhere, theirs = found.values()
        shown = f"LoRA {ours:.4g} {unit}, all weights {theirs:.4g} {unit}: ratio {ours / theirs:.3f}"
        print(f"{title}: {shown}; on every linear layer {everywhere / theirs:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
