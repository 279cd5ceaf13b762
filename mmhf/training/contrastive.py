"""The trainer of dual encoders: a step contrasts all of its pairs, however they are cut up and spread."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmhf.conventions import IGNORED_IMAGE, TEACHER_EMBEDS
from mmhf.data.datasets import RowDataset
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.files import write_text
from mmhf.models.contrastive_loss import EmbeddedPairs, caption_ids, contrastive_loss
from mmhf.models.dual_encoder import DualEncoderModel
from mmhf.models.dual_encoder.modeling_dual_encoder import DualEncoderOutput
from mmhf.parallel import gather, rank, world_size
from mmhf.recipe.dual_encoder_recipe import ContrastiveRecipe
from mmhf.training.boundary import beside_training
from mmhf.training.gradient_caching import (
    Batch,
    ContrastedStep,
    RandomState,
    check_replay,
    contrast_outputs,
    embed_without_graph,
)
from mmhf.training.hard_negatives import HardNegatives, TrainingPairs
from mmhf.training.parallel import whole
from mmhf.training.stages import StagePosition
from mmhf.training.trainer import MMTrainer
from mmhf.training.weights import is_sharded

logger = logging.getLogger(__name__)

_SHOWN_IDS = 8
_BAD_BATCH_FILE = "bad_batch.txt"
_MOST_UNJUDGED = 100
"""Steps after which losses are looked at although nothing was logged: until then a step's pairs are remembered."""


class _UnjudgedStep(NamedTuple):
    """A step whose loss nobody has looked at yet, as that would wait for the device."""

    number: int
    loss: Tensor
    image_index: Tensor
    is_finite: Tensor
    """(N,), whether both embeddings of a pair are."""


class ContrastiveEvaluator(Trainer):
    """A Trainer whose evaluation gives the embeddings of each pair's text and image, and the loss of each batch.

    Predictions are `(text_embeds, image_embeds)`, labels the `image_index`.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs["args"].label_names = ["image_index"]
        super().__init__(**kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch by itself, whose images are embedded once, however many captions they have."""
        index = inputs["image_index"]
        images, places = index.unique(return_inverse=True)
        first = torch.full_like(images, len(index)).scatter_reduce(
            0, places, torch.arange(len(index)).to(index), "amin"
        )
        seen: dict[str, Any] = {
            name: inputs[name][first] for name in ("pixel_values", "image_features", "image_hidden") if name in inputs
        }
        output = model(**{**inputs, **seen, "image_index": None})
        captions = caption_ids(inputs["input_ids"], inputs.get("attention_mask"))
        output.image_embeds = output.image_embeds[places]
        pairs = EmbeddedPairs(output.image_embeds, output.text_embeds, index, captions)
        dual_encoder = self.accelerator.unwrap_model(model)
        loss = contrastive_loss(pairs, output.logit_scale, output.logit_bias, dual_encoder.contrast)
        return (loss, output) if return_outputs else loss


class ContrastiveTrainer(MMTrainer, ContrastiveEvaluator):
    """An [`MMTrainer`] whose optimizer step contrasts all pairs of the step, over all micro-batches and processes.

    Micro-batches are what `transformers.Trainer` accumulates; where there are several, gradients are cached. So
    k × b pairs have the loss and gradients of one batch of k · b, at the memory of b. Logs `temperature`, and the
    shares of pairs whose image or caption was already in the step, or whose image was broken.

    Args:
        recipe (`ContrastiveRecipe`, *optional*): As of [`MMTrainer`]; `contrastive.batch_size` holds.
        more_metrics (`Callable[[Trainer], dict[str, float]]`, *optional*): What each evaluation measures beside
            `compute_metrics`.
        kwargs: As [`MMTrainer`] takes them; the model is a `DualEncoderModel`, and batches have `image_index`.
    """

    def __init__(
        self,
        *,
        recipe: ContrastiveRecipe | None = None,
        more_metrics: Callable[[Trainer], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        args: TrainingArguments = kwargs["args"]
        if args.n_gpu > 1:
            raise InputError(
                f"one process would use {args.n_gpu} GPUs; start one for each with accelerate launch --multi_gpu, or "
                "set CUDA_VISIBLE_DEVICES to one"
            )
        self._more_metrics = more_metrics
        self._batches: list[Batch] = []
        self._taught: list[Batch] = []
        self._done = 0
        self._step: ContrastedStep | None = None
        self._others: list[DualEncoderOutput] = []
        self._states: list[RandomState] = []
        self._to_replay: DualEncoderOutput | None = None
        self._replay_is_unchecked = True
        self._counts: Tensor | None = None
        self._unjudged: list[_UnjudgedStep] = []
        super().__init__(recipe=recipe, **kwargs)
        self.add_callback(KeepTemperature())
        if recipe is not None and (section := recipe.contrastive.hard_negatives) is not None:
            if is_sharded():
                raise InputError(
                    "contrastive.hard_negatives: needs whole weights on each process; FSDP and DeepSpeed keep parts"
                )
            self.data.arrangement = HardNegatives(section, self._embed_training_pairs)

    @torch.no_grad()
    def _embed_training_pairs(self, rows: NDArray[np.int64], epoch: int) -> TrainingPairs:
        """Embed the samples of an epoch as it will see them, without dropout; see [`Embed`].

        Batches do not depend on the number of processes, which share them out.
        """
        size, model, dataset = self.args.per_device_eval_batch_size, self._dual_encoder, self.train_dataset
        assert isinstance(dataset, RowDataset)
        keys = [SampleKey(row, epoch) for row in rows.tolist()]
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches[rank() :: world_size()],
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        was_training = model.training
        model.eval()
        found = []
        try:
            with beside_training(), self.accelerator.autocast():
                for batch in loader:
                    inputs = self._prepare_inputs(batch)
                    index = inputs.pop("image_index")
                    output = model(**{name: each for name, each in inputs.items() if name not in TEACHER_EMBEDS})
                    captions = caption_ids(inputs["input_ids"], inputs.get("attention_mask"))
                    embeds = output.image_embeds.float(), output.text_embeds.float()
                    found.append(TrainingPairs(*(each.cpu() for each in (*embeds, index, captions))))
        finally:
            model.train(was_training)
        shared = gather(found)
        ordered = [shared[number % world_size()][number // world_size()] for number in range(len(batches))]
        place = torch.from_numpy(np.argsort(rows))
        columns = (torch.cat(column)[place].to(self.args.device) for column in zip(*ordered, strict=True))
        return TrainingPairs(*columns)

    def begin_stage(self, position: StagePosition) -> None:
        """As of [`MMTrainer`]; the first step compares its two passes."""
        super().begin_stage(position)
        self._replay_is_unchecked = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Take the micro-batches of one step, all of which its first `training_step` needs."""
        self._others, self._states, self._taught, self._done, self._step = [], [], [], 0, None
        self._batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._batches, None

    def _on_the_way(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Embed each micro-batch but the first as it arrives: a GPU does so while the next one is read.

        What a teacher made of its pairs is no input of the model.
        """
        for number, batch in enumerate(super()._on_the_way(batches)):
            self._taught.append({name: batch.pop(name) for name in TEACHER_EMBEDS if name in batch})
            if number > 0:
                self.model_wrapped.train()
                output, state = embed_without_graph(self.model_wrapped, self._prepare_inputs(batch))
                self._others.append(output)
                self._states.append(state)
            yield batch

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Carry one micro-batch's part of the step's gradient into the weights.

        Returns:
            `Tensor`: the step's loss for its first micro-batch and 0 for the others, as Trainer adds them up.
        """
        model.train()
        number, self._done = self._done, self._done + 1
        batch: Batch = self._prepare_inputs(inputs)
        if self._step is None:
            output = self._begin_step(model)
        else:
            with self._states[number - 1].replayed():
                output = model(**batch)
            self._check_replay(output)
        step = self._step
        assert step is not None
        options = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        self.accelerator.backward(step.surrogate(output, number), **options)
        loss = step.loss if number == 0 else torch.zeros_like(step.loss)
        self._guard.watch.add(loss)
        return loss

    def _begin_step(self, model: nn.Module) -> DualEncoderOutput:
        """Contrast all pairs of the step; gives the first micro-batch's output, with its graph."""
        batches: list[Batch] = [self._prepare_inputs(batch) for batch in self._batches]
        if self._compiled is not None:
            self._compiled.expect(lambda: _embeddings(self.plan.model(**batches[0])))
        output: DualEncoderOutput = model(**batches[0])
        if self._compiled is not None:
            self._compiled.compare(_embeddings(output))
        taught = [] if self.teaching is None else [self._prepare_inputs(batch) for batch in self._taught]
        self._step = contrast_outputs(
            [output, *self._others], batches, self._dual_encoder.contrast, teaching=self.teaching, taught=taught
        )
        self._remember(self._step)
        if self._others and self._replay_is_unchecked:
            self._to_replay, self._replay_is_unchecked = self._others[0], False
        return output

    def _check_replay(self, output: DualEncoderOutput) -> None:
        """Once a stage, compare the two passes of a micro-batch: gradients of other embeddings would mean nothing.

        What a stage thaws begins to drop out, and may draw random numbers that nobody replays.
        """
        if self._to_replay is not None:
            check_replay(self._to_replay, output)
            self._to_replay = None

    @property
    def _dual_encoder(self) -> DualEncoderModel:
        model = self.plan.model
        assert isinstance(model, DualEncoderModel)
        return model

    def _remember(self, step: ContrastedStep) -> None:
        """Count what the log tells, and keep what an explanation would need, without looking at anything."""
        pairs, counts = step.pairs, _count(step.pairs)
        self._counts = counts if self._counts is None else self._counts + counts
        is_finite = pairs.image_embeds.isfinite().all(dim=1) & pairs.text_embeds.isfinite().all(dim=1)
        self._unjudged.append(_UnjudgedStep(self.state.global_step + 1, step.loss, pairs.image_index, is_finite))
        if len(self._unjudged) >= _MOST_UNJUDGED:
            self._judge()

    def _judge(self) -> None:
        """Look at the losses since the last time.

        Raises:
            InputError: One is not finite.
        """
        steps, self._unjudged = self._unjudged, []
        if steps and self.stops_at_nan:
            losses = torch.stack([step.loss for step in steps]).tolist()
            for step, loss in zip(steps, losses, strict=True):
                if not math.isfinite(loss):
                    raise InputError(self._explain_bad_step(step, loss))

    def check_weights(self) -> None:
        self._judge()
        super().check_weights()

    def _explain_bad_step(self, step: _UnjudgedStep, loss: float) -> str:
        takes_part = step.image_index != IGNORED_IMAGE
        ids = self._ids(step.image_index[takes_part])
        broken = self._ids(step.image_index[~step.is_finite & takes_part])
        named, what = (broken, "rows whose embeddings are not finite") if broken else (ids, "rows of the batch")
        path = self.run_dir / _BAD_BATCH_FILE
        if self.args.should_save:
            write_text(path, "".join(f"{each}\n" for each in ids))
        return self._guard.explain(
            f"the loss is {loss}; {what}: "
            f"{', '.join(named[:_SHOWN_IDS])}{', ...' if len(named) > _SHOWN_IDS else ''} (all {len(ids)} ids of the "
            f"batch are in {path})",
            step=step.number,
        )

    def _ids(self, image_index: Tensor) -> list[str]:
        indices = image_index.tolist()
        dataset = self.train_dataset
        if isinstance(dataset, RowDataset) and isinstance(dataset.table, datasets.Dataset):
            return [str(each) for each in dataset.table.select(indices)["id"]]
        return [str(index) for index in indices]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate or predict; an evaluation also measures `more_metrics`."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._more_metrics is not None and metric_key_prefix == "eval":
            found = self._more_metrics(self)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the temperature and with what was counted since the last time."""
        if "loss" in logs and self._counts is not None:
            self._judge()
            taking_part, skipped, images, captions = self._counts.tolist()
            logs["temperature"] = 1 / whole(self._dual_encoder.logit_scale.detach()).exp().item()
            logs["repeated_images"] = images / max(taking_part, 1)
            logs["repeated_captions"] = captions / max(taking_part, 1)
            if skipped:
                logs["skipped_pairs"] = skipped
            self._counts = None
        super().log(logs, start_time)


def _embeddings(output: DualEncoderOutput) -> Tensor:
    """(2 B, D) embeddings of a batch's images and texts."""
    assert output.image_embeds is not None
    assert output.text_embeds is not None
    return torch.cat([output.image_embeds, output.text_embeds]).float()


class KeepTemperature(TrainerCallback):
    """Keeps the temperature within its bounds after each optimizer step."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        for module in model.modules() if model is not None else ():
            if isinstance(module, DualEncoderModel):
                module.clamp_temperature()


def _count(pairs: EmbeddedPairs) -> Tensor:
    """Pairs that take part, that do not, whose image was there before, and whose caption was; (4,)."""
    takes_part = pairs.image_index != IGNORED_IMAGE
    others = -2 - torch.arange(len(pairs), device=takes_part.device)  # equal to nothing
    repeats = []
    for ids in (pairs.image_index, pairs.caption_id):
        ordered = torch.where(takes_part, ids, others).sort().values
        repeats.append((ordered[1:] == ordered[:-1]).sum())
    return torch.stack([takes_part.sum(), (~takes_part).sum(), *repeats]).float()
