"""The four families, tiny and random: a model, a batch, and a trainer of two stages, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    Qwen2Config,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)

from mmhf.data.datasets import RowDataset
from mmhf.models.captioner import PrefixCaptionerConfig, PrefixCaptionerForConditionalGeneration
from mmhf.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from mmhf.models.encoders import timm_config
from mmhf.models.fusion import FusionConfig, FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig
from mmhf.training.captioning import CaptioningTrainer
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

SIDE, TOKENS, VOCABULARY = 32, 8, 64
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

Batch = dict[str, torch.Tensor]


def _efficientnet() -> Any:
    half = [0.5, 0.5, 0.5]
    return timm_config(
        "test_efficientnet", {"input_size": [3, SIDE, SIDE], "mean": half, "std": half, "interpolation": "bicubic"}
    )


def _fusion(dropout: float, **changes: Any) -> PreTrainedModel:
    text = BertConfig(
        vocab_size=VOCABULARY, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **NARROW
    )
    labels = {0: "true", 1: "fake"}
    return FusionForImageTextClassification(
        FusionConfig(_efficientnet(), text, embedding_dim=16, dropout=dropout, id2label=labels, **changes)
    )


def _image_classifier(dropout: float, **changes: Any) -> PreTrainedModel:
    config = BackboneForImageClassificationConfig(
        _efficientnet(), head_dropout=(dropout, dropout), id2label={0: "cat", 1: "dog"}, **changes
    )
    return BackboneForImageClassification(config)


def _dual_encoder(dropout: float, **changes: Any) -> PreTrainedModel:
    vision = ViTConfig(image_size=SIDE, patch_size=16, hidden_dropout_prob=dropout, **NARROW)
    text = CLIPTextConfig(vocab_size=VOCABULARY, attention_dropout=dropout, **NARROW)
    return DualEncoderModel(DualEncoderConfig(vision, text, text_pooling="last_token", embedding_dim=16, **changes))


def _captioner(dropout: float, **changes: Any) -> PreTrainedModel:
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=16, projection_dim=24, **NARROW)
    language = Qwen2Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        # Larger weights than usual, so that what is generated depends on the image.
        initializer_range=0.3,
        tie_word_embeddings=True,
        **NARROW,
    )
    config = PrefixCaptionerConfig(
        vision, language, projector_dropout=dropout, prefix_length=3, projector_hidden_dims=[32], **changes
    )
    return PrefixCaptionerForConditionalGeneration(config)


@dataclass(frozen=True)
class TinyFamily:
    """How a family is built and trained.

    Attributes:
        build (`Callable[..., PreTrainedModel]`): From a rate of dropout and values of the config to a model.
        target (`str`): What its batches are learnt from: `labels`, `image_index` or `captions`.
        reads_text (`bool`): Whether batches have tokens.
        trainer_class (`type[MMTrainer]`): Its trainer.
        head (`tuple[str, ...]`): What trains in the first stage.
    """

    build: Callable[..., PreTrainedModel]
    target: str
    reads_text: bool
    trainer_class: type[MMTrainer]
    head: tuple[str, ...]

    def model(self, *, dropout: float = 0.0, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """A model with random weights."""
        torch.manual_seed(seed)
        return self.build(dropout, **changes)

    def batch(self, indices: Sequence[int]) -> Batch:
        """A batch of samples by number, always the same."""
        samples = [self._sample(index) for index in indices]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 + index)
        sample: Batch = {"pixel_values": torch.randn(3, SIDE, SIDE, generator=generator)}
        if self.reads_text:
            length = 3 + index % (TOKENS - 2)
            sample["input_ids"] = torch.randint(2, VOCABULARY, (TOKENS,), generator=generator)
            sample["attention_mask"] = (torch.arange(TOKENS) < length).long()
        if self.target == "labels":
            sample["labels"] = torch.tensor(index % 2)
        elif self.target == "image_index":
            sample["image_index"] = torch.tensor(index)
        else:
            sample["labels"] = sample["input_ids"].masked_fill(sample["attention_mask"] == 0, -100)
        return sample

    def loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        """The loss of a batch by itself."""
        more = {"return_loss": True} if self.target == "image_index" else {}
        loss: torch.Tensor = model(**batch, **more).loss
        return loss

    def trainer(
        self,
        model: PreTrainedModel,
        folder: Path,
        *,
        num_rows: int = 24,
        stages: Sequence[Stage] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **arguments: Any,
    ) -> MMTrainer:
        """A trainer of two stages of three steps: the head, then everything."""
        if stages is None:
            stages = [Stage(name="head", steps=3, train=list(self.head)), Stage(name="all", steps=3)]
        values: dict[str, Any] = {
            "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "report_to": "none",
            "dataloader_pin_memory": False, "disable_tqdm": True, "remove_unused_columns": False,
        }  # fmt: skip
        args = TrainingArguments(output_dir=str(folder), **{**values, **arguments})
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        plan = StagePlan.build(model, list(stages), steps_per_epoch=max(num_rows // size, 1), learning_rate=1e-3)
        args.max_steps = plan.num_steps
        return self.trainer_class(
            model=model,
            args=args,
            plan=plan,
            train_dataset=self.rows(num_rows),
            data_collator=self.collate,
            callbacks=list(callbacks),
        )

    def rows(self, count: int) -> RowDataset:
        """So many rows that `collate` makes batches of."""
        return RowDataset(
            datasets.Dataset.from_dict({"row": list(range(count)), "id": [f"row {row}" for row in range(count)]})
        )

    def collate(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """A batch of rows."""
        return self.batch([row["row"] for row in rows])


FAMILIES = {
    "fusion": TinyFamily(_fusion, "labels", True, MMTrainer, ("fusion", "head")),
    "image_classifier": TinyFamily(_image_classifier, "labels", False, MMTrainer, ("head",)),
    "dual_encoder": TinyFamily(_dual_encoder, "image_index", True, ContrastiveTrainer, ("projections", "temperature")),
    "captioner": TinyFamily(_captioner, "captions", True, CaptioningTrainer, ("projector",)),
}
