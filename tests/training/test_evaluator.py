"""Evaluation gives what Trainer gives, and copies each output once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, trainer_pt_utils
from transformers.modeling_outputs import SequenceClassifierOutput

from mmhf.training.evaluator import Evaluator


@pytest.fixture
def predict(tiny_model, tiny_data, tmp_path):
    """Predict in batches of 5, by a class of trainers, with two outputs; gives the output and what was measured on."""
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "per_device_eval_batch_size": 5, "disable_tqdm": True}

    def run(trainer_class):
        seen = []
        forward = tiny_model.forward

        def two_outputs(features, labels=None):
            found = forward(features, labels)
            return SequenceClassifierOutput(loss=found.loss, logits=found.logits, hidden_states=(features,))

        def measure(found):
            seen.append((found.predictions, found.label_ids))
            return {"first": float(found.predictions[0].sum())}

        tiny_model.forward = two_outputs
        trainer = trainer_class(
            model=tiny_model, args=TrainingArguments(**arguments), data_collator=_collate, compute_metrics=measure
        )
        output = trainer.predict(tiny_data)
        tiny_model.forward = forward
        return output, seen

    return run


def _collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in ("features", "labels")}


def test_outputs_are_those_of_trainer(predict):
    (stock, stock_seen), (ours, seen) = predict(Trainer), predict(Evaluator)
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
