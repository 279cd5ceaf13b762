"""A tiny dual encoder, rows of random pairs, and a trainer of both; processes that pytest does not start import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import BertConfig, TrainerCallback, TrainingArguments, ViTConfig

from mmhf.conventions import TEACHER_EMBEDS
from mmhf.data.datasets import RowDataset
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.recipe import recipe_from_dict
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe
from mmhf.training.arguments import accumulation_steps, steps_per_epoch
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.distillation import Teaching
from mmhf.training.stages import Stage, StagePlan

SIDE, TOKENS, VOCABULARY = 16, 6, 50
PAIRS, STEP = 32, 16
IMAGES = [0, 0, 2, 3, 3, 3, *range(6, 31), -1]


def tiny_dual_encoder(*, dropout: float = 0.0, **values: Any) -> DualEncoderModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    vision = ViTConfig(image_size=SIDE, patch_size=8, **sizes, **dropouts)
    text = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **sizes, **dropouts)
    return DualEncoderModel(
        DualEncoderConfig(vision, text, text_pooling="mean", embedding_dim=8, initial_temperature=0.2, **values)
    )


def make_batch(indices: Sequence[int], image_index: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    pixels, tokens = [], []
    for index in indices:
        generator = torch.Generator().manual_seed(1000 + index)
        pixels.append(torch.randn(3, SIDE, SIDE, generator=generator))
        tokens.append(torch.randint(1, VOCABULARY, (TOKENS,), generator=generator))
    return {
        "pixel_values": torch.stack(pixels),
        "input_ids": torch.stack(tokens),
        "attention_mask": torch.ones(len(indices), TOKENS, dtype=torch.long),
        "image_index": torch.tensor(indices if image_index is None else image_index),
    }


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return make_batch([row["row"] for row in rows], [row["image"] for row in rows])


def collate_taught(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """With a teacher's embeddings, which have a width of their own."""
    batch = collate(rows)
    generators = [torch.Generator().manual_seed(row["row"]) for row in rows]
    for name in TEACHER_EMBEDS:
        embeds = torch.stack([torch.randn(12, generator=each) for each in generators])
        batch[name] = torch.nn.functional.normalize(embeds, dim=1) * (9.0 if "image" in name else 1.0)
    return batch


def make_rows(count: int, images: Sequence[int] | None = None) -> RowDataset:
    images = list(range(count)) if images is None else list(images)
    ids = [f"pair{index}" for index in range(count)]
    return RowDataset(datasets.Dataset.from_dict({"row": list(range(count)), "id": ids, "image": images}))


def make_trainer(
    model: DualEncoderModel,
    rows: RowDataset,
    folder: Path,
    *,
    batch_size: int | None = None,
    hard_negatives: dict[str, Any] | None = None,
    stages: Sequence[Stage] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    teaching: Teaching | None = None,
    **arguments: Any,
) -> ContrastiveTrainer:
    recipe = recipe_from_dict(
        {
            "task": "contrastive",
            "data": {"source": "sample"},
            "contrastive": {"batch_size": batch_size, "hard_negatives": hard_negatives},
        },
        name="tiny",
    ).recipe
    assert isinstance(recipe, ContrastiveRecipe)
    values = {"per_device_train_batch_size": 4, "save_strategy": "no", "optim": "sgd", "max_grad_norm": 0.0}
    args = TrainingArguments(
        output_dir=str(folder),
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        **{**values, **arguments},
    )
    args.gradient_accumulation_steps = accumulation_steps(recipe, args)

    def steps(stage: Stage) -> int:
        accumulation = accumulation_steps(recipe, args, stage.batch_size)
        return steps_per_epoch(len(rows), args, stage.batch_size, accumulation=accumulation)

    stages = stages or [Stage(name="all", epochs=2.0, learning_rate=0.5)]
    plan = StagePlan.build(model, list(stages), steps_per_epoch=steps)
    args.max_steps = plan.num_steps
    return ContrastiveTrainer(
        model=model,
        args=args,
        plan=plan,
        recipe=recipe,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate if teaching is None else collate_taught,
        eval_collator=collate,
        teaching=teaching,
        callbacks=list(callbacks),
    )


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.by_step: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        parameters = model.named_parameters()
        self.by_step.append(
            {name.removeprefix("module."): p.grad.clone() for name, p in parameters if p.grad is not None}
        )


def train(folder: Path, kind: str, world_size: int) -> dict[str, Any]:
    """Losses, gradients by step and final weights, of all kinds of contrasting that must agree."""
    values = {"loss": "sigmoid", "logit_bias": -3.0, "matryoshka": [2, 5, 8]}
    if kind != "sigmoid":
        values = {"label_smoothing": 0.1}
    whole = STEP // world_size
    micro_batches = {**dict.fromkeys(("whole", "taught", "hard"), whole), "bf16": 4}
    micro_batches |= dict.fromkeys(("cached", "taught cached", "hard cached"), 2)
    micro_batch = micro_batches.get(kind, whole // 2)
    gradients = Gradients()
    trainer = make_trainer(
        tiny_dual_encoder(**values),
        make_rows(PAIRS, IMAGES),
        folder / kind,
        batch_size=STEP,
        per_device_train_batch_size=micro_batch,
        stages=[
            Stage(name="text", epochs=1.0, train=["text", "projections"], learning_rate=0.5),
            Stage(name="all", epochs=1.0, learning_rate=0.5),
        ],
        callbacks=[gradients],
        hard_negatives={"first_epoch": 0, "below_own": None} if kind.startswith("hard") else None,
        bf16=kind == "bf16",
        teaching=Teaching(0.6, 1.5) if kind.startswith("taught") else None,
    )
    trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients.by_step,
        "weights": {name: value.detach() for name, value in trainer.plan.model.named_parameters()},
    }


@pytest.fixture
def tiny_model() -> Callable[..., DualEncoderModel]:
    """Build a dual encoder of one layer a tower; keywords are those of its config, and `dropout`."""
    return tiny_dual_encoder


@pytest.fixture
def batch_of() -> Callable[..., dict[str, torch.Tensor]]:
    """Make a batch of pairs by number."""
    return make_batch


@pytest.fixture
def rows_of() -> Callable[..., RowDataset]:
    """Make a data set of so many pairs."""
    return make_rows


@pytest.fixture
def trainer_of() -> Callable[..., ContrastiveTrainer]:
    """Build a trainer; keywords are `batch_size`, `stages`, `callbacks` and those of TrainingArguments."""
    return make_trainer


@pytest.fixture
def train_here() -> Callable[..., dict[str, Any]]:
    """Train in this process what `train_in_processes.py` trains in several."""
    return train
