import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_staged"


class TinyStagedModel(PreTrainedModel):
    """Three groups with batch norm and dropout: enough for everything that freezing can get wrong."""

    config_class = TinyConfig
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Sequential(
            nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)),
            nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)),
        )
        self.head = nn.Linear(16, 3)
        self.post_init()

    def parameter_groups(self):
        names = [name for name, _ in self.named_parameters()]
        return {
            group: [name for name in names if name.startswith(f"{group}.")] for group in ("body.0", "body.1", "head")
        }

    def forward(self, features, labels=None):
        logits = self.head(self.body(features))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class TinyData(torch.utils.data.Dataset):
    def __init__(self, rows):
        generator = torch.Generator().manual_seed(7)
        self.features = torch.randn(rows, 8, generator=generator)
        self.labels = (self.features[:, :3] @ torch.eye(3)).argmax(1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"features": self.features[index], "labels": self.labels[index]}


@pytest.fixture(scope="session")
def _tiny_model():
    torch.manual_seed(0)
    return TinyStagedModel(TinyConfig())


@pytest.fixture
def tiny_model(_tiny_model):
    return copy.deepcopy(_tiny_model)


@pytest.fixture
def tiny_data():
    return TinyData(48)
