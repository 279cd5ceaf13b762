"""Evaluation gives what Trainer gives, and copies each output once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, trainer_pt_utils
from transformers.modeling_outputs import SequenceClassifierOutput

from mmhf.training import evaluator
from mmhf.training.evaluator import Evaluator


@pytest.fixture
def predict(tiny_model, tiny_data, tmp_path):
    """Predict in batches of 5, by a class of trainers, with two outputs; gives the output and what was measured on.

    The trainer must be as it was. With `uneven`, every other batch's second output is narrower.
    """
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "per_device_eval_batch_size": 5, "disable_tqdm": True}

    def run(trainer_class, *, uneven=False):
        seen, batches = [], itertools.count()
        forward = tiny_model.forward

        def two_outputs(features, labels=None):
            found = forward(features, labels)
            width = 1 + next(batches) % 2 if uneven else None
            return SequenceClassifierOutput(loss=found.loss, logits=found.logits, hidden_states=(features[:, :width],))

        def measure(found):
            seen.append((found.predictions, found.label_ids))
            return {"first": float(found.predictions[0].sum())}

        tiny_model.forward = two_outputs
        trainer = trainer_class(
            model=tiny_model, args=TrainingArguments(**arguments), data_collator=_collate, compute_metrics=measure
        )
        before = trainer.args.to_dict()
        output = trainer.predict(tiny_data)
        assert trainer.compute_metrics is measure and trainer.args.to_dict() == before
        tiny_model.forward = forward
        return output, seen

    return run


def _collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in ("features", "labels")}


@pytest.mark.parametrize("uneven", [False, True])
def test_outputs_are_those_of_trainer(predict, uneven):
    (stock, stock_seen), (ours, seen) = predict(Trainer, uneven=uneven), predict(Evaluator, uneven=uneven)
    assert ours.metrics["test_loss"] == pytest.approx(stock.metrics["test_loss"])
    assert ours.metrics["test_first"] == stock.metrics["test_first"]
    np.testing.assert_array_equal(ours.label_ids, stock.label_ids)
    for output in (ours.predictions, seen[0][0]):
        np.testing.assert_array_equal(output[0], stock.predictions[0])
        np.testing.assert_array_equal(output[1][0], stock.predictions[1][0])
    assert len(seen) == len(stock_seen) == 1


def test_no_batch_copies_those_before_it(predict, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("all outputs so far are copied")

    monkeypatch.setattr(trainer_pt_utils, "nested_concat", refuse)
    assert len(predict(Evaluator)[0].label_ids) == 48


def test_few_batches_wait_on_the_device(predict, monkeypatch):
    add, waiting = trainer_pt_utils.EvalLoopContainer.add, []

    def counted(self, tensors):
        add(self, tensors)
        waiting.append(len(self.tensors) if isinstance(self.tensors, list) else 0)

    monkeypatch.setattr(evaluator, "_BATCHES_ON_DEVICE", 4)
    monkeypatch.setattr(trainer_pt_utils.EvalLoopContainer, "add", counted)
    predict(Evaluator)
    assert max(waiting) == 4 and len(waiting) > 10


def test_gaps_between_outputs_are_given_back_now_and_then(predict, monkeypatch):
    times = []
    monkeypatch.setattr(evaluator, "_BATCHES_BETWEEN_TRIMS", 4)
    monkeypatch.setattr(evaluator, "give_back_gaps", lambda: times.append(1))
    predict(Evaluator)
    assert len(times) == 2, "of 10 batches"


def test_batches_are_let_go_as_they_are_joined():
    """So that the outputs of a large split are never held twice."""
    batches = [np.arange(6, dtype=np.float32).reshape(3, 2), np.full((2, 2), 9, np.float32)]
    expected = np.concatenate(batches)
    joined = evaluator._joined(batches)
    np.testing.assert_array_equal(joined, expected)
    assert joined.dtype == np.float32 and batches == [None, None]
