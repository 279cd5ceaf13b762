"""A head-only stage: MMTrainer with a frozen encoder against a hand-written loop with the encoder under no_grad.

Time per step and peak memory of tensors; inference alone (forward under no_grad) stands beside them. All in one
process, rounds alternate. The aims: time at most 1.05 of the loop, memory at most 1.1 of inference's plus the head.

    python benchmarks/frozen_stage.py [ROUNDS]
"""

import copy
import gc
import statistics
import sys
import tempfile
import time

import datasets
import torch
from torch.utils.data import DataLoader
from trainer_step import BATCH, STEPS, StepTimes, collate, make_model
from transformers import TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

TRAINED = ("vision_projection.", "text_projection.", "fusion.", "head.")
MIB = 2**20


class PeakMemory:
    """Largest sum of tensor bytes alive after any step of the autograd profiler's allocations."""

    def __enter__(self):
        gc.collect()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profiler.__enter__()
        return self

    def __exit__(self, *exception):
        self.profiler.__exit__(*exception)
        alive = peak = 0
        for event in self.profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                peak = max(peak, alive)
        self.mib = peak / MIB


def train_staged(model, rows):
    plan = StagePlan.build(model, [Stage(name="head", steps=STEPS, train=["fusion", "head"])], steps_per_epoch=STEPS)
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


def train_by_hand(model, rows):
    head = [parameter for name, parameter in model.named_parameters() if name.startswith(TRAINED)]
    optimizer = torch.optim.AdamW(head, lr=5e-5, weight_decay=0.01, fused=True)
    model.eval()
    times = []
    begun = time.perf_counter()
    for step, batch in enumerate(DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collate)):
        if step > 0:
            times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with torch.no_grad():
            image = model.image_features(batch["pixel_values"])
            text = model.text_features(batch["input_ids"], batch["attention_mask"])
        optimizer.zero_grad()
        model.classify(image, text, batch["labels"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(head, 1.0)
        optimizer.step()
    return times


@torch.no_grad()
def infer(model, rows):
    model.eval()
    for batch in DataLoader(rows, batch_size=BATCH, collate_fn=collate):
        model(**batch)


def main(rounds=5):
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(BATCH * STEPS))}))
    model = make_model()
    sides = {"MMTrainer": train_staged, "hand loop": train_by_hand}
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name] += side(copy.deepcopy(model), rows)
    memory = {}
    for name, side in {**sides, "inference": infer}.items():
        fresh = copy.deepcopy(model)
        with PeakMemory() as peak:
            side(fresh, rows)
        memory[name] = peak.mib
    ours, theirs = (statistics.median(times[name]) for name in sides)
    print(f"MMTrainer {1000 * ours:.1f} ms, hand loop {1000 * theirs:.1f} ms a step: ratio {ours / theirs:.3f}")
    # Gradients and the two moments of Adam, besides the weights, which all sides hold already.
    head = 3 * 4 / MIB * sum(p.numel() for name, p in model.named_parameters() if name.startswith(TRAINED))
    print(
        f"peak of new tensors: MMTrainer {memory['MMTrainer']:.0f} MiB, hand loop {memory['hand loop']:.0f}, "
        f"inference {memory['inference']:.0f} + head {head:.0f}: "
        f"ratio {memory['MMTrainer'] / (memory['inference'] + head):.3f}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
