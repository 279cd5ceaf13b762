"""transformers.Trainer takes a step although a callback asked it to stop in `on_train_begin`.

A run that ended early (a callback set `should_training_stop`) and is resumed from its last checkpoint cannot be told
that it is over: `_inner_training_loop` looks at `control.should_training_stop` after an epoch, never before it.

    python docs/upstream/one_step_too_many.py

Expected: 0 steps. Seen with transformers 5.24.0: 1 step.
"""

import tempfile

import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments


class Linear(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 2)
        self.post_init()

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Stop(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        control.should_training_stop = True


rows = [{"x": torch.ones(2), "labels": torch.tensor(0)} for _ in range(8)]
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(folder, max_steps=4, per_device_train_batch_size=2, use_cpu=True, save_strategy="no")
    trainer = Trainer(Linear(PretrainedConfig()), args, train_dataset=rows, callbacks=[Stop()])
    trainer.train()
steps = trainer.state.global_step
print(f"{steps} steps after should_training_stop in on_train_begin: {'as expected' if steps == 0 else 'BUG'}")
