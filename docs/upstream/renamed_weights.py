"""transformers.Trainer resumes with other weights than it saved, where a model is saved under older names.

`save_pretrained` writes some models (ViT among them) by the names that their weights had before version 5, which
`from_pretrained` translates. `Trainer._load_from_checkpoint` reads the file with `load_state_dict(..., strict=False)`:
nothing fits, a warning is logged, and training goes on from the weights that the model happened to have.

    python docs/upstream/renamed_weights.py

Expected: the resumed model has the weights of the checkpoint. Seen with transformers 5.24.0: it has not.
"""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


def make_trainer(folder, max_steps):
    torch.manual_seed(max_steps)  # another start in each run, as after a restart with fresh weights
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    args = TrainingArguments(
        folder, max_steps=max_steps, save_steps=1, per_device_train_batch_size=2, learning_rate=0.0, use_cpu=True
    )
    rows = [{"pixel_values": torch.ones(3, 8, 8), "labels": 0} for _ in range(4)]
    return Trainer(ViTForImageClassification(config), args, train_dataset=rows)


with tempfile.TemporaryDirectory() as folder:
    first = make_trainer(folder, 1)
    first.train()
    second = make_trainer(folder, 2)
    second.train(resume_from_checkpoint=f"{folder}/checkpoint-1")
saved, resumed = first.model.state_dict(), second.model.state_dict()
others = [name for name in saved if not torch.equal(saved[name], resumed[name])]
print(f"{len(others)} of {len(saved)} tensors are not those of the checkpoint: {'BUG' if others else 'as expected'}")
