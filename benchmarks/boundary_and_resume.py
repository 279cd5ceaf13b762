"""Cost of a stage boundary, and of resuming at 90 % of an epoch, both against the training steps of the same run.

The aims: a boundary takes less than one step; the first step after resuming begins within 5 % of the time that the
skipped steps took.

    python benchmarks/boundary_and_resume.py [STEPS]
"""

import copy
import sys
import tempfile
import time
from pathlib import Path

import datasets
from trainer_step import BATCH, StepTimes, collate, make_model
from transformers import TrainerCallback, TrainingArguments

from mmhf.data.datasets import RowDataset
from mmhf.training.boundary import StageCallback
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer


class FirstStep(TrainerCallback):
    """Notes when the first step begins."""

    def __init__(self):
        self.at = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.at = self.at or time.perf_counter()


def make_trainer(model, rows, stages, folder, steps, save_at):
    plan = StagePlan.build(model, stages, steps_per_epoch=steps, learning_rate=1e-4)
    args = TrainingArguments(
        output_dir=folder, max_steps=plan.num_steps, per_device_train_batch_size=BATCH, use_cpu=True,
        save_strategy="steps", save_steps=save_at, remove_unused_columns=False, dataloader_pin_memory=False,
        disable_tqdm=True, log_level="error",
    )  # fmt: skip
    return MMTrainer(model=model, args=args, plan=plan, train_dataset=rows, data_collator=collate)


def time_boundary(model, rows, steps):
    stages = [Stage(name="head", steps=5, train=["fusion", "head"]), Stage(name="all", steps=5)]
    times = StepTimes()
    entered = []
    original = StageCallback._begin_stage

    def timed(self, *args, **kwargs):
        begun = time.perf_counter()
        original(self, *args, **kwargs)
        entered.append(time.perf_counter() - begun)

    StageCallback._begin_stage = timed
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, rows, stages, folder, steps, save_at=1000)
        trainer.add_callback(times)
        trainer.train()
    StageCallback._begin_stage = original
    return entered[1], min(times.times)


def time_resume(model, rows, steps):
    stages = [Stage(name="head", steps=steps, train=["fusion", "head"])]
    stop_at = round(0.9 * steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(copy.deepcopy(model), rows, stages, folder, steps, save_at=stop_at)
        times = StepTimes()
        trainer.add_callback(times)
        trainer.train()
        skipped = sum(times.times[: stop_at - 1])
        first = FirstStep()
        resumed = make_trainer(model, rows, stages, folder, steps, save_at=1000)
        resumed.add_callback(first)
        begun = time.perf_counter()
        resumed.train(resume_from_checkpoint=str(Path(folder) / f"checkpoint-{stop_at}"))
        return first.at - begun, skipped


def main(steps=60):
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(BATCH * steps))}))
    model = make_model()
    boundary, step = time_boundary(copy.deepcopy(model), rows, steps)
    print(f"boundary {1000 * boundary:.0f} ms, fastest step {1000 * step:.0f} ms: ratio {boundary / step:.3f}")
    resume, skipped = time_resume(model, rows, steps)
    print(f"resume {resume:.2f} s to its first step, skipped steps {skipped:.2f} s: ratio {resume / skipped:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
