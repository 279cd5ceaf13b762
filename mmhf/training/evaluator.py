"""Evaluation in the memory that its metrics need; how splits are read; trainers that only evaluate."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import nested_concat
from transformers.trainer_utils import EvalLoopOutput

from mmhf.cpu import give_back_gaps
from mmhf.features.stage import StageFeatures
from mmhf.training.devices import normalise_on_device
from mmhf.training.short_attention import short_attention

_BATCHES_BETWEEN_TRIMS = 64
_BATCHES_ON_DEVICE = 16
"""Whose outputs wait there to be copied, so that what a device holds does not grow with the rows."""


class JoinsOnce(Trainer):
    """The part of a Trainer that puts the outputs of an evaluation together when it is over.

    transformers 5.24 copies all outputs so far at each batch, and leaves them on the device until the end.
    """

    _num_predicted = 0

    def create_accelerator_and_postprocess(self) -> None:
        """As of `transformers.Trainer`; whoever computes under its autocast attends as steps do."""
        super().create_accelerator_and_postprocess()
        autocast = self.accelerator.autocast

        @contextlib.contextmanager
        def with_short_attention(*args: Any, **kwargs: Any) -> Iterator[None]:
            with self.short_attention(), autocast(*args, **kwargs):
                yield

        self.accelerator.autocast = with_short_attention

    def short_attention(self) -> contextlib.AbstractContextManager[Any]:
        """What every pass of the model is in, see `mmhf.training.short_attention`."""
        return short_attention(self.args.device, str(self.accelerator.mixed_precision))

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch as `transformers.Trainer` does."""
        self._num_predicted += 1
        if self._num_predicted % _BATCHES_BETWEEN_TRIMS == 0:
            give_back_gaps()
        with self.short_attention():
            return super().prediction_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate or predict as `transformers.Trainer` does."""
        joined: dict[str, Any] = {}
        measure, settings = self.compute_metrics, self.args
        given = settings.eval_do_concat_batches, settings.eval_accumulation_steps

        def join_and_measure(found: EvalPrediction) -> dict[str, float]:
            assert measure is not None
            joined.update(predictions=_joined(found.predictions), label_ids=_joined(found.label_ids))
            rest = {"inputs": _joined(found.inputs), "losses": _joined(found.losses)}
            whole = EvalPrediction(**joined, **{name: value for name, value in rest.items() if value is not None})
            return measure(whole)

        settings.eval_do_concat_batches = False
        settings.eval_accumulation_steps = settings.eval_accumulation_steps or _BATCHES_ON_DEVICE
        self.compute_metrics = None if measure is None else join_and_measure
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.compute_metrics = measure
            settings.eval_do_concat_batches, settings.eval_accumulation_steps = given
        if not joined:
            joined = {"predictions": _joined(output.predictions), "label_ids": _joined(output.label_ids)}
        return output._replace(**joined)


def _joined(batches: Any) -> Any:
    """One array, or a tuple or mapping of arrays, of those of all batches."""
    if not isinstance(batches, list) or not batches:
        return batches
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: _joined([batch[name] for batch in batches]) for name in first}
    if isinstance(first, tuple | list):
        return tuple(_joined(list(parts)) for parts in zip(*batches, strict=True))
    if len({batch.shape[1:] for batch in batches}) > 1:  # padded to the longest, as Trainer does
        return functools.reduce(nested_concat, batches)
    whole = np.empty((sum(len(batch) for batch in batches), *first.shape[1:]), first.dtype)
    start = 0
    for at, batch in enumerate(batches):
        whole[start : start + len(batch)] = batch
        start += len(batch)
        batches[at] = None  # so that the outputs of a large split are never held twice
    return whole


class ReadsSplits(JoinsOnce):
    """The part of a Trainer that reads the splits it evaluates: without augmentation, with features that are stored.

    Attributes:
        features ([`StageFeatures`], *optional*): Stores features of frozen parts; absent, they are always computed.
        eval_collator (`Callable`, *optional*): Makes the batches; absent, `data_collator` makes these too.
    """

    features: StageFeatures | None = None
    eval_collator: Callable[[list[Any]], dict[str, Any]] | None = None

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """The batches of a split that is evaluated, without augmentation."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._evaluated(super().get_eval_dataloader, dataset, eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """The batches of a split that is predicted, without augmentation."""
        return self._evaluated(super().get_test_dataloader, test_dataset, test_dataset)

    def _evaluated(self, make: Callable[[Any], DataLoader[Any]], dataset: Any, given: Any) -> DataLoader[Any]:
        collator = self.data_collator
        self.data_collator = self.eval_collator or collator
        persistent = self.args.dataloader_persistent_workers
        if self.features is not None:
            self.features.attach(dataset, self.data_collator, is_training=False)
            self.features.check()
            # Workers of one stage would not see the next one's columns.
            self.args.dataloader_persistent_workers = False
        try:
            return make(given)
        finally:
            self.data_collator, self.args.dataloader_persistent_workers = collator, persistent


class ReadsFeatures(JoinsOnce):
    """A Trainer that gives stored features to the data sets that it evaluates."""

    features: StageFeatures | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        normalise_on_device(self.model, self.args.device, self.data_collator)

    def read_features(self, features: StageFeatures | None) -> None:
        """Read these from now on.

        Args:
            features ([`StageFeatures`], *optional*): Of one stage, in which nothing trains.
        """
        self.features = features
        if features is not None:
            args = self.args
            features.use(self.accelerator, num_workers=args.dataloader_num_workers, with_bar=not args.disable_tqdm)
            features.enter(0)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        if self.features is not None:
            self.features.attach(test_dataset, self.data_collator, is_training=False)
        return super().get_test_dataloader(test_dataset)


class Evaluator(ReadsFeatures):
    """A Trainer that only evaluates."""
