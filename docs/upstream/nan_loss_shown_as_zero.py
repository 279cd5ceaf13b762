"""transformers.Trainer logs a loss of 0.0 for a model whose loss is NaN, and trains on.

With `logging_nan_inf_filter`, the default, each NaN is replaced by the mean of what was logged since: from the first
step on that is 0.0, which looks like a perfect run. The weights are NaN by then.

    python docs/upstream/nan_loss_shown_as_zero.py

Expected: NaN in the log, a warning or an error. Seen with transformers 5.24.0: 0.0 in each line, and no warning.
"""

import tempfile

import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments


class Diverging(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 2)
        self.post_init()

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": logits.sum() * float("nan"), "logits": logits}


rows = [{"x": torch.ones(2), "labels": torch.tensor(0)} for _ in range(8)]
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(folder, max_steps=4, logging_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = Trainer(Diverging(PretrainedConfig()), args, train_dataset=rows)
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"logged: {losses}; weights: {trainer.model.layer.weight.flatten().tolist()}")
print("BUG" if losses == [0.0] * len(losses) else "as expected")
