"""Time of one training step: MMTrainer against a hand-written torch loop on the same model, batches and optimizer.

Both train the same small fusion classifier (EfficientNet-B0 and a 6-layer text encoder, random weights, 128 pixels)
from the same loader, in alternating rounds of one process. Prints the ratio of their median times per step; the aim is
at most 1.05.

    python benchmarks/trainer_step.py [ROUNDS]
"""

import copy
import statistics
import sys
import tempfile
import time

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.models.fusion.building import build_fusion_model
from mmhf.recipe.fusion_recipe import FusionModelSection, FusionTextSection
from mmhf.recipe.sections import VisionEncoderSection
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

BATCH, STEPS, PIXELS, TOKENS = 16, 6, 128, 24


def make_model():
    torch.manual_seed(0)
    section = FusionModelSection(
        vision=VisionEncoderSection(backbone="timm/efficientnet_b0", pretrained=False),
        text=FusionTextSection(backbone="pypi/all-minilm-l6-v2", pretrained=False, pooling="mean"),
    )
    return build_fusion_model(section, label_names=["no", "yes"])


def collate(rows):
    generator = torch.Generator().manual_seed(rows[0]["index"])
    tokens = torch.randint(1000, 20000, (len(rows), TOKENS), generator=generator)
    return {
        "pixel_values": torch.randn(len(rows), 3, PIXELS, PIXELS, generator=generator),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.randint(0, 2, (len(rows),), generator=generator),
    }


class StepTimes(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if state.global_step > 0:
            self.times.append(now - self.begun)
        self.begun = now


def time_trainer(model, rows):
    plan = StagePlan.build(model, [Stage(name="all", steps=STEPS, learning_rate=1e-4)], steps_per_epoch=STEPS)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, use_cpu=True, save_strategy="no",
            remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=10, disable_tqdm=True,
            log_level="error", weight_decay=0.01,
        )  # fmt: skip
        trainer = MMTrainer(
            model=model, args=args, plan=plan, train_dataset=rows, data_collator=collate, callbacks=[times]
        )
        trainer.train()
    return times.times


def time_loop(model, rows):
    loader = DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    model.train()
    times = []
    begun = time.perf_counter()
    for step, batch in enumerate(loader):
        if step > 0:
            times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return times


def main(rounds=5):
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(BATCH * STEPS))}))
    model = make_model()
    trainer_times, loop_times = [], []
    for _ in range(rounds):
        trainer_times += time_trainer(copy.deepcopy(model), rows)
        loop_times += time_loop(copy.deepcopy(model), rows)
    ours, theirs = statistics.median(trainer_times), statistics.median(loop_times)
    print(f"MMTrainer {1000 * ours:.1f} ms, hand loop {1000 * theirs:.1f} ms a step: ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
