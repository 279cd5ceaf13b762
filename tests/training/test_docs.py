"""The code of docs/stages.md runs as it stands."""

import re
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

DOCS = Path(__file__).parents[2] / "docs" / "stages.md"


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"input_ids": torch.tensor([1, 2, 3 + index % 4]), "labels": torch.tensor(index % 2)}


def test_the_stock_trainer_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "Trainer(" in block)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    short = code.replace("steps_per_epoch=100", "steps_per_epoch=2").replace(
        '"outputs/mine",', '"outputs/mine", use_cpu=True,'
    )
    exec(short, {"model": model, "train_dataset": Sentences()})
    assert all(
        not torch.equal(before[name], tensor) for name, tensor in model.named_parameters() if "word" not in name
    )
