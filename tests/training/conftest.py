import copy

import datasets
import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from mmhf.data.datasets import RowDataset
from mmhf.recipe.data_sections import SampleDataSection
from mmhf.recipe.fusion_recipe import FusionRecipe
from mmhf.training.arguments import steps_per_epoch
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer


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


STAGES = [
    Stage(name="head", epochs=1.0, train="head", learning_rate=1e-2, schedule="cosine"),
    Stage(name="top", epochs=1.0, train=["head", "body.1"], learning_rate={"head": 1e-2, "body.1": 1e-3}),
    Stage(name="all", epochs=1.0, train="all", learning_rate=1e-3, schedule="linear"),
]


def _collate(rows):
    return {
        "features": torch.tensor([row["features"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def _fusion_recipe(**sections):
    return FusionRecipe(task="image-text-classification", data=SampleDataSection(source="sample"), **sections)


def _make_trainer(model, data, folder, *, stages=STAGES, recipe=None, callbacks=(), **arguments):
    rows = datasets.Dataset.from_dict({"features": data.features.tolist(), "labels": data.labels.tolist()})
    given = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True}
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        remove_unused_columns=False,
        logging_steps=3,
        **(given | arguments),
    )
    plan = StagePlan.build(
        model, stages, steps_per_epoch=lambda stage: steps_per_epoch(len(data), args, stage.batch_size)
    )
    args.max_steps = plan.num_steps
    return MMTrainer(
        model=model,
        args=args,
        plan=plan,
        recipe=recipe,
        train_dataset=RowDataset(rows),
        eval_dataset=RowDataset(rows),
        data_collator=_collate,
        callbacks=list(callbacks),
    )


@pytest.fixture
def make_trainer():
    """Build an MMTrainer over three one-epoch stages of six steps each; keywords are those of TrainingArguments."""
    return _make_trainer


@pytest.fixture
def fusion_recipe():
    """Build a recipe out of sections."""
    return _fusion_recipe


@pytest.fixture
def collate():
    """Make a batch of rows."""
    return _collate
