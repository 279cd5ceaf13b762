from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from mmhf.errors import InputError
from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.partition import Partition

GROUPS = [
    "vision.stem",
    *(f"vision.stages.{index}" for index in range(7)),
    "vision.final",
    "text.embeddings",
    *(f"text.layers.{index}" for index in range(12)),
    "fusion",
    "head",
]


@pytest.fixture(scope="module")
def partition() -> Partition:
    return Partition({group: [f"{group}.weight"] for group in GROUPS})


def test_of_a_model_covers_each_parameter_once(model):
    partition = Partition.of(model)
    listed = [name for names in partition.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert list(partition)[-2:] == ["fusion", "head"]
    assert partition["head"] == ("head.weight", "head.bias")
    assert "vision_projection.weight" in partition["fusion"] and "text_projection.bias" in partition["fusion"]
    assert partition.group_of("text.encoder.layer.1.output.dense.weight") == "text.layers.1"


def test_of_a_bare_encoder_uses_its_layer_groups(tiny_bert):
    assert list(Partition.of(AutoModel.from_config(tiny_bert()))) == ["embeddings", "layers.0", "layers.1", "final"]


def test_counts_add_up_to_the_model_on_the_meta_device(tiny_config):
    with torch.device("meta"):
        model = FusionForImageTextClassification(tiny_config())
    counts = Partition.of(model).counts(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["head"] == 8 * 3 + 3


class Grouped(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.groups = groups

    def parameter_groups(self):
        return self.groups


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ["first.weight"]}, "in no group: second.weight"),
        ({"a": ["first.weight", "second.weight"], "b": ["first.weight"]}, "in the groups a and b"),
        ({"a": ["first.weight", "second.weight", "third"]}, "lacks: third"),
    ],
)
def test_a_partition_that_is_none_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        Partition.of(Grouped(groups))


def test_a_tied_tensor_counts_once():
    model = Grouped({"a": ["first.weight"]})
    model.second.weight = model.first.weight
    partition = Partition.of(model)
    assert partition.counts(model) == {"a": 4}
    assert [name for name, _ in partition.frozen_modules(model, [])] == [""]


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ("head", ["head"]),
        ("all", GROUPS),
        ("vision", GROUPS[:9]),
        ("vision.stages", GROUPS[1:8]),
        ("vision.stages.*", GROUPS[1:8]),
        ("*.final", ["vision.final"]),
        ("vision.stages.[56]", ["vision.stages.5", "vision.stages.6"]),
        (["head", "vision:last 2"], ["vision.stages.5", "vision.stages.6", "vision.final", "head"]),
        ("vision:last 30%", ["vision.stages.4", "vision.stages.5", "vision.stages.6", "vision.final"]),
        ("vision:last 100%", GROUPS[1:9]),
        ("vision.final:last 1", ["vision.final"]),
        ("text.layers:last 25%", ["text.layers.9", "text.layers.10", "text.layers.11"]),
        ("text:first 1", ["text.embeddings", "text.layers.0"]),
        ("text: first  10%", ["text.embeddings", "text.layers.0", "text.layers.1"]),
        ("text.layers.1", ["text.layers.1"]),
        ("all:last 1", ["head"]),
        (["all", "!text", "!vision"], ["fusion", "head"]),
        ("!text", [group for group in GROUPS if not group.startswith("text")]),
        (["text", "!text:last 12"], ["text.embeddings"]),
        (["text:last 12", "!text.layers.3", "text.layers.3"], GROUPS[10:22]),
    ],
)
def test_selectors(partition, selectors, expected):
    assert partition.select(selectors) == tuple(expected)


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("visoin", "did you mean vision"),
        ("vision.stage", "did you mean vision.stages"),
        ("hed", "did you mean head"),
        ("zzz", "the groups are vision.stem"),
        ("", "matches no parameter group"),
        ("!txt", "did you mean text"),
        ("vision:last 10", "asks for last 10 of 7 blocks"),
        ("vision:last 0", "asks for last 0 of 7"),
        ("vision:last 120%", "asks for last 120% of 7"),
        ("vision:last 1.5", "not a whole number"),
        ("vision:middle 3", "after the colon"),
        (["head", "!head"], "leave no group"),
        ([], "leave no group"),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(partition, selectors, message):
    with pytest.raises(InputError, match=message) as caught:
        partition.select(selectors)
    assert "\n" not in str(caught.value)


@st.composite
def group_names(draw) -> list[str]:
    towers = draw(st.lists(st.sampled_from(["vision", "text", "audio"]), unique=True, min_size=1))
    names = [f"{tower}.layers.{index}" for tower in towers for index in range(draw(st.integers(1, 30)))]
    return [*names, "head"]


@settings(deadline=None)
@given(group_names(), st.data())
@pytest.mark.slow
def test_selected_groups_keep_the_order_and_count(names, data):
    partition = Partition({name: [f"{name}.weight"] for name in names})
    tower = data.draw(st.sampled_from(sorted({name.partition(".")[0] for name in names})))
    under = [name for name in names if name.partition(".")[0] == tower]
    percent = data.draw(st.integers(1, 100))
    last = partition.select(f"{tower}:last {percent}%")
    assert list(last) == under[-len(last) :]
    assert len(last) == -(-percent * len(under) // 100)
    count = data.draw(st.integers(1, len(under)))
    assert list(partition.select(f"{tower}:first {count}")) == under[:count]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1))
    selected = partition.select(chosen)
    assert set(selected) == set(chosen)
    assert [names.index(name) for name in selected] == sorted(names.index(name) for name in selected)
    rest = set(names) - set(chosen)
    if rest:
        assert set(partition.select([f"!{name}" for name in chosen])) == rest


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_selects_groups_or_is_an_input_error(text):
    partition = Partition({group: [f"{group}.weight"] for group in GROUPS})
    try:
        assert set(partition.select(text)) <= set(GROUPS)
    except InputError as error:
        assert str(error)


def test_a_share_is_rounded_up_but_not_by_a_floating_point_bit():
    partition = Partition({f"a.{index}": [f"a.{index}.weight"] for index in range(10)})
    for percent in range(1, 101):
        assert len(partition.select(f"a:last {percent}%")) == math.ceil(percent / 10)


class Tower(nn.Module):
    """patch, drop, blocks (each with an activation), norm; as a ViT registers them."""

    def __init__(self):
        super().__init__()
        self.early_drop = nn.Dropout()
        self.patch = nn.Linear(2, 2)
        self.drop = nn.Dropout()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)) for _ in range(3)))
        self.norm = nn.LayerNorm(2)
        self.pool = nn.Identity()
        self.head = nn.Linear(2, 2)


@pytest.fixture
def tower() -> tuple[Tower, Partition]:
    tower = Tower()
    names = [name for name, _ in tower.named_parameters()]
    groups = {"patch": [name for name in names if name.startswith("patch")]}
    for index in range(3):
        groups[f"blocks.{index}"] = [name for name in names if name.startswith(f"blocks.{index}.")]
    groups["norm"] = ["norm.weight", "norm.bias"]
    groups["head"] = ["head.weight", "head.bias"]
    return tower, Partition(groups)


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (["head"], ["early_drop", "patch", "drop", "blocks", "norm", "pool"]),
        (["head", "norm"], ["early_drop", "patch", "drop", "blocks"]),
        (["head", "norm", "blocks.2"], ["early_drop", "patch", "drop", "blocks.0", "blocks.1"]),
        (["patch"], ["blocks", "norm", "pool", "head"]),
        (["blocks.1"], ["early_drop", "patch", "drop", "blocks.0", "blocks.2", "norm", "pool", "head"]),
        ([], [""]),
        (["patch", "blocks.0", "blocks.1", "blocks.2", "norm", "head"], []),
    ],
)
def test_frozen_modules_are_the_largest_ones(tower, trained, expected):
    module, partition = tower
    frozen = partition.frozen_modules(module, trained)
    assert [name for name, _ in frozen] == expected
    assert all(module.get_submodule(name) is found for name, found in frozen)


def test_frozen_modules_hold_every_frozen_parameter_and_no_other(model):
    partition = Partition.of(model)
    for selectors in ("head", ["head", "vision:last 2"], "text:last 1", "!vision", "vision.stem"):
        trained = partition.select(selectors)
        inside = {
            f"{name}.{leaf}"
            for name, module in partition.frozen_modules(model, trained)
            for leaf, _ in module.named_parameters()
        }
        assert inside == set(partition.parameters_of(set(partition) - set(trained)))


def test_frozen_batch_norms_of_a_real_backbone_stop_drifting(model, batch):
    partition = Partition.of(model)
    trained = partition.select(["head", "vision.final"])
    model.train()
    for _, module in partition.frozen_modules(model, trained):
        module.eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(**batch)
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("vision.timm_model.bn2.") for name in moved)
