"""What mmhf overrides of Trainer's private side is written down, and is still there."""

import inspect

import pytest
from transformers import Trainer

from mmhf.training.captioning import CaptioningTrainer
from mmhf.training.contrastive import ContrastiveEvaluator, ContrastiveTrainer
from mmhf.training.evaluator import ReadsSplits
from mmhf.training.lr_range import RangeTestTrainer
from mmhf.training.trainer import MMTrainer
from mmhf.training.trainer_hooks import PRIVATE_ATTRIBUTES, PRIVATE_HOOKS

TRAINERS = [ReadsSplits, MMTrainer, CaptioningTrainer, ContrastiveTrainer, ContrastiveEvaluator, RangeTestTrainer]


@pytest.mark.parametrize("name", PRIVATE_HOOKS)
def test_a_private_method_is_there_with_the_signature_that_we_know(name):
    assert name in vars(Trainer), f"Trainer.{name} is gone: {PRIVATE_HOOKS[name].reason}"
    _, *parameters = inspect.signature(vars(Trainer)[name]).parameters
    assert tuple(parameters) == PRIVATE_HOOKS[name].parameters


@pytest.mark.parametrize("name", PRIVATE_ATTRIBUTES)
def test_a_private_attribute_is_still_used(name):
    assert f"self.{name}" in inspect.getsource(Trainer)


def test_no_other_private_method_is_overridden():
    overridden = {
        name
        for trainer in TRAINERS
        for name, member in vars(trainer).items()
        if name.startswith("_") and not name.startswith("__") and callable(member) and hasattr(Trainer, name)
    }
    assert overridden == set(PRIVATE_HOOKS)


def test_own_names_hide_nothing_of_trainer():
    theirs = {name for name in vars(Trainer) if not name.startswith("__")}
    public = {name for trainer in TRAINERS for name in vars(trainer) if name in theirs and not name.startswith("_")}
    assert public == {
        "create_optimizer",
        "create_scheduler",
        "compute_loss",
        "evaluate",
        "evaluation_loop",
        "get_batch_samples",
        "get_eval_dataloader",
        "get_test_dataloader",
        "get_train_dataloader",
        "log",
        "save_model",
        "set_initial_training_values",
        "train",
        "training_step",
    }
