import copy
import pickle

import pytest
import torch

from mmhf.errors import DamagedError
from mmhf.models.partition import Partition
from mmhf.training.weights import BestWeights, apply_freezing, release_from_eval


def test_only_trained_groups_require_gradients(tiny_model):
    apply_freezing(tiny_model, Partition.of(tiny_model), ["head"])
    assert {name for name, p in tiny_model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_frozen_modules_stay_in_eval_whatever_calls_train(tiny_model):
    apply_freezing(tiny_model, Partition.of(tiny_model), ["body.1", "head"])
    tiny_model.train()
    tiny_model.body.train()
    assert not any(module.training for module in tiny_model.body[0].modules())
    assert all(module.training for module in tiny_model.body[1].modules())


def test_frozen_batch_norm_does_not_drift_and_frozen_dropout_is_off(tiny_model):
    apply_freezing(tiny_model, Partition.of(tiny_model), ["head"])
    before = copy.deepcopy(tiny_model.state_dict())
    features = torch.randn(16, 8)
    outputs = [tiny_model.train()(features).logits for _ in range(2)]
    assert torch.equal(*outputs)
    after = tiny_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_frozen_builds_no_graph(tiny_model):
    apply_freezing(tiny_model, Partition.of(tiny_model), ["head"])
    assert not tiny_model.train().body(torch.randn(4, 8)).requires_grad


def test_thawing_brings_everything_back(tiny_model):
    partition = Partition.of(tiny_model)
    apply_freezing(tiny_model, partition, ["head"])
    apply_freezing(tiny_model, partition, list(partition))
    tiny_model.train()
    assert all(module.training for module in tiny_model.modules())
    assert all(p.requires_grad for p in tiny_model.parameters())


def test_copies_and_pickles_of_a_frozen_model_are_their_own(tiny_model):
    apply_freezing(tiny_model, Partition.of(tiny_model), ["head"])
    clone = copy.deepcopy(tiny_model)
    release_from_eval(tiny_model)
    assert not clone.train().body[0].training
    assert tiny_model.train().body[0].training
    apply_freezing(tiny_model, Partition.of(tiny_model), ["head"])
    restored = pickle.loads(pickle.dumps(tiny_model.body[0]))
    assert torch.equal(restored[0].weight, tiny_model.body[0][0].weight)


def test_kept_weights_that_are_damaged_are_not_put_back(tiny_model, tmp_path):
    best = BestWeights(tmp_path / "best.safetensors")
    best.save(tiny_model)
    expected = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    torch.nn.init.zeros_(tiny_model.head.weight)
    best.load(tiny_model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tiny_model.state_dict().items())
    content = best.path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-8], content[:100], b"", None):
        best.path.unlink() if damaged is None else best.path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"best\.safetensors: the best weights of the stage"):
            best.load(tiny_model)
