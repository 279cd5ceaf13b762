"""The trainer of captioners: a loss that weighs tokens alike, and captions written during evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from mmhf.conventions import IGNORED_LABEL
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.captioner.processing_captioner import PROMPT_INPUTS
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import share_buffers

Measure = Callable[[Sequence[str], Sequence[int]], Mapping[str, float]]


@dataclass
class WrittenCaptions:
    """What a captioner made of a split.

    Attributes:
        loss (`float`): Mean over all tokens of the captions.
        captions (`list[str]`): One a row, in order.
        is_usable (`list[bool]`): Whether the row's image could be decoded.
    """

    loss: float = 0.0
    captions: list[str] = field(default_factory=list)
    is_usable: list[bool] = field(default_factory=list)


@torch.no_grad()
def run_captioner(
    trainer: Trainer,
    dataloader: DataLoader[Any],
    processor: CaptionerProcessor,
    *,
    with_loss: bool = True,
    with_captions: bool = True,
) -> WrittenCaptions:
    """Loss and captions of a split, on all processes together.

    Args:
        trainer (`Trainer`): Its model, precision and processes are used.
        dataloader (`DataLoader`): One that it made, such as `trainer.get_test_dataloader(dataset)`.
        processor ([`CaptionerProcessor`]): Reads captions out of tokens.
        with_loss, with_captions (`bool`): What to do; the images are looked at once for both.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PrefixCaptionerForConditionalGeneration)
    was_training = model.training
    model.eval()
    device = trainer.args.device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    written = WrittenCaptions()
    for batch in dataloader:
        inputs = trainer._prepare_inputs(batch)
        labels = inputs["labels"]
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            features = image_features_of(model, inputs)
            prompts: dict[str, Any] = {name: inputs[name] for name in PROMPT_INPUTS if name in inputs}
            if with_loss:
                captions = {"input_ids": inputs["input_ids"], "labels": labels, "num_items_in_batch": 1}
                loss = model(image_features=features, **captions, **prompts).loss
                sums += torch.stack([loss.double(), (labels != IGNORED_LABEL).sum().double()])
            tokens = model.generate(image_features=features, **prompts) if with_captions else labels[:, :1]
        pad = processor.tokenizer.pad_token_id
        tokens = trainer.accelerator.pad_across_processes(tokens, dim=1, pad_index=pad)
        gathered: torch.Tensor = trainer.accelerator.gather_for_metrics(tokens)
        usable = trainer.accelerator.gather_for_metrics((labels != IGNORED_LABEL).any(dim=1))
        if with_captions:
            written.captions += processor.captions(gathered)
        written.is_usable += usable.tolist()
    total, count = trainer.accelerator.reduce(sums).tolist()
    written.loss = total / max(count, 1.0)
    model.train(was_training)
    return written


def image_features_of(model: PrefixCaptionerForConditionalGeneration, inputs: Mapping[str, Any]) -> torch.Tensor:
    """What the projector reads, of a batch that may hold features of the image encoder, or of its lower part."""
    if "image_features" in inputs:
        stored: torch.Tensor = inputs["image_features"]
        return stored
    if "image_hidden" in inputs:
        return model.resumed_image_features(inputs["image_hidden"])
    return model.image_features(inputs["pixel_values"])


class CaptioningTrainer(MMTrainer):
    """An [`MMTrainer`] whose evaluation writes captions for some images and measures them.

    Args:
        written_rows (`Dataset`, *optional*): Images to write captions for, the same in each evaluation; absent, none.
        measure (`Callable`, *optional*): Captions and the numbers of their rows in `written_rows` → metrics, by names
            without the split.
        kwargs: As [`MMTrainer`] takes them; the model is a `PrefixCaptionerForConditionalGeneration`.
    """

    def __init__(
        self, *, written_rows: Dataset[Any] | None = None, measure: Measure | None = None, **kwargs: Any
    ) -> None:
        self._written_rows = written_rows
        self._measure = measure
        super().__init__(**kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # What a checkpoint leaves out, and what is tied to something that it has, is in the model already.
        model = self.plan.model
        left_out = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
        missing = [name for name in load_result.missing_keys if name not in left_out]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss of the data set, each token weighing alike, and metrics of the captions of the chosen rows."""
        share_buffers(self.plan.model, self.args)
        processor: Any = self.processing_class
        rows = run_captioner(self, dataloader, processor, with_captions=False)
        metrics = {"loss": rows.loss}
        if self._written_rows is not None and self._measure is not None:
            loader = self.get_test_dataloader(self._written_rows)
            written = run_captioner(self, loader, processor, with_loss=False)
            usable = [number for number, is_usable in enumerate(written.is_usable) if is_usable]
            metrics |= self._measure([written.captions[number] for number in usable], usable)
        named = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        nothing: Any = None
        return EvalLoopOutput(nothing, nothing, named, num_samples=len(rows.is_usable))
