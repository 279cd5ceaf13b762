"""Precision, copies and reading processes by device, and a recipe's word against accelerate's."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_families import FAMILIES
from transformers import CLIPImageProcessor

import mmhf
from mmhf.data.collators import ImageCollator
from mmhf.data.mixing import BatchMixer
from mmhf.data.pixels import why_normalised_ahead
from mmhf.errors import InputError
from mmhf.features import keys
from mmhf.recipe import recipe_from_dict
from mmhf.training import devices
from mmhf.training.arguments import training_arguments
from mmhf.training.devices import choose_precision, device_defaults


@pytest.fixture
def card(monkeypatch):
    """Let a CUDA device be there."""

    def put(*, has_bf16=True, capability=(9, 0), cores=16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr("os.cpu_count", lambda: cores)

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return put


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("training", "launched", "mixed", "reason"),
    [
        ({}, None, "no", "not on a CUDA device"),
        ({}, "no", "no", "not on a CUDA device"),
        ({"bf16": True}, None, "bf16", "the recipe"),
        ({"bf16": True}, "no", "bf16", "the recipe"),
        ({"fp16": True}, None, "fp16", "the recipe"),
        ({}, "bf16", "bf16", "accelerate's configuration"),
        ({"bf16": True}, "bf16", "bf16", "accelerate's configuration"),
        ({"fp16": False}, "bf16", "bf16", "accelerate's configuration"),
        ({"bf16": False}, None, "no", "the recipe"),
    ],
)
def test_who_says_what_a_cpu_computes_in(training, launched, mixed, reason, monkeypatch):
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    found = choose_precision(training)
    assert found.mixed == mixed
    assert found.reason.startswith(reason)


def test_bf16_on_a_cpu_needs_no_further_word(tmp_path):
    recipe = recipe_from_dict(
        {"task": "image-classification", "data": {"source": "sample"}, "training": {"bf16": True}}, name="r"
    )
    args = training_arguments(recipe.recipe, str(tmp_path), has_validation=True)
    assert args.mixed_precision == "bf16" and args.device.type == "cpu"


@pytest.mark.parametrize(
    ("training", "launched", "message"),
    [
        ({"bf16": False}, "bf16", "training.bf16: false, but accelerate's configuration says mixed_precision: bf16;"),
        ({"fp16": True}, "bf16", "training.fp16: true, but accelerate's configuration says mixed_precision: bf16;"),
        ({"bf16": True}, "fp16", "training.bf16: true, but accelerate's configuration says mixed_precision: fp16;"),
    ],
)
def test_a_recipe_and_accelerate_that_contradict_each_other(training, launched, message, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(InputError, match=message):
        choose_precision(training)


def test_a_card_with_bf16_takes_it_and_an_older_one_scaled_fp16(card):
    card()
    assert str(choose_precision({})) == "bf16: a card has it; training.bf16: false turns it off"
    assert choose_precision({"bf16": False}).mixed == "no"
    assert choose_precision({"use_cpu": True}).mixed == "no"
    assert device_defaults({}, is_stream=True) == {
        "bf16": True, "tf32": True, "dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True},
    }  # fmt: skip
    card(has_bf16=False, capability=(7, 5))
    assert choose_precision({}).mixed == "fp16"
    defaults = device_defaults({}, is_stream=True)
    assert defaults["fp16"]
    assert "tf32" not in defaults
    assert "tf32" not in device_defaults({"fp16": False}, is_stream=True), "fp32 that was asked for is whole"


def test_workers_read_for_a_card_but_not_where_their_number_counts(card, monkeypatch):
    assert device_defaults({}, is_stream=False) == {"dataloader_pin_memory": False}
    card(cores=16)
    values = device_defaults({}, is_stream=False)
    assert values["dataloader_num_workers"] == 8
    assert values["dataloader_persistent_workers"]
    assert "dataloader_num_workers" not in device_defaults({}, is_stream=True)
    assert "dataloader_persistent_workers" not in device_defaults({"dataloader_num_workers": 0}, is_stream=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_defaults({}, is_stream=False)["dataloader_num_workers"] == 3
    card(cores=1)
    assert "dataloader_num_workers" not in device_defaults({}, is_stream=False)


def test_what_a_recipe_says_stands(card, tmp_path):
    card()
    values = {"bf16": False, "dataloader_num_workers": 2, "use_cpu": True, "tf32": None}
    recipe = recipe_from_dict(
        {"task": "image-classification", "data": {"source": "sample"}, "training": values}, name="r"
    ).recipe
    args = training_arguments(recipe, str(tmp_path), has_validation=False)
    assert (args.bf16, args.fp16, args.dataloader_num_workers, args.tf32) == (False, False, 2, None)


def test_arguments_say_what_accelerate_was_launched_with(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = recipe_from_dict({"task": "image-classification", "data": {"source": "sample"}}, name="r").recipe
    assert training_arguments(recipe, str(tmp_path), has_validation=False).mixed_precision == "bf16"


@pytest.mark.slow
def test_a_plan_says_the_precision_and_why(tiny_recipe, monkeypatch):
    path = tiny_recipe()
    assert mmhf.plan(path).run["precision"] == "fp32: not on a CUDA device; training.bf16: true asks for it"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert mmhf.plan(path).run["precision"] == "bf16: accelerate's configuration"
    with pytest.raises(InputError, match="training.bf16: false, but accelerate's configuration"):
        mmhf.plan(path, ["training.bf16=false"])


@pytest.mark.slow
@pytest.mark.parametrize("order", [("no", "bf16"), ("bf16", "no")])
def test_stored_features_of_two_precisions_do_not_meet(order, tiny_recipe, two_stages, tmp_path, monkeypatch):
    """The same recipe under each of accelerate's configurations, over one store, in both orders."""

    def losses(name, *, cache):
        changes = {"cache": {"mode": cache, "folder": str(tmp_path / "features")}, **two_stages}
        changes["training"] = {**two_stages["training"], "output_dir": str(tmp_path / name)}
        mmhf.train(tiny_recipe(changes, name=name.replace("/", "_")))
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    found = {}
    for launched in order:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        found[launched] = losses(f"stored_{launched}", cache="on")
        assert found[launched] == pytest.approx(losses(f"computed_{launched}", cache="off"), rel=1e-5, abs=1e-6)
    assert found["no"] != found["bf16"]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["on", "off"])
def test_normalised_on_the_device_a_run_ends_with_the_same_bits(cache, tiny_recipe, two_stages, tmp_path, monkeypatch):
    changes = {**two_stages, "data": {"augment": {"horizontal_flip": 0.5}}, "cache": {"mode": cache}}
    sent, found = [], []
    encode = ImageCollator.__call__

    def watched(self, rows):
        batch = encode(self, rows)
        sent.append(batch["pixel_values"].dtype if "pixel_values" in batch else None)
        return batch

    monkeypatch.setattr(ImageCollator, "__call__", watched)
    for why in ("not here", None):
        for module in (devices, keys):
            monkeypatch.setattr(module, "why_normalised_ahead", lambda device, why=why: why)
        folder = tmp_path / f"run {why}"
        mmhf.train(tiny_recipe({**changes, "training": {**changes["training"], "output_dir": str(folder)}}))
        found.append((load_file(folder / "model.safetensors"), json.loads((folder / "metrics.json").read_text())))
        assert set(sent) - {None} == {torch.float32 if why else torch.uint8}
        sent.clear()
    (ahead, metrics), (there, metrics_there) = found
    assert metrics == metrics_there
    assert ahead.keys() == there.keys()
    assert all(torch.equal(ahead[name], there[name]) for name in ahead)


def test_mixed_images_are_normalised_before(monkeypatch):
    monkeypatch.setattr(devices, "why_normalised_ahead", lambda device: None)
    model, processor = FAMILIES["image_classifier"].model(), CLIPImageProcessor()
    assert model.pixel_mean is None
    drawing = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    drawing.save(stream := io.BytesIO(), "PNG")
    image = {"path": None, "bytes": stream.getvalue()}
    keys = {"epoch": 0, "draw": 0, "stage": 0}
    rows = [{"row": at, "id": "x", "index": at, "image": image, "label": at, **keys} for at in range(2)]
    mixing, plain = (ImageCollator(processor, mixer=mixer) for mixer in (BatchMixer(3, mixup=0.2), None))
    mixed = mixing(rows)["pixel_values"]
    devices.normalise_on_device(model, torch.device("cpu"), plain, mixing, None)
    assert torch.equal(mixing(rows)["pixel_values"], mixed)
    assert plain(rows)["pixel_values"].dtype == torch.uint8
    assert model.pixel_mean.shape == (3, 1, 1) and "pixel_mean" not in model.state_dict()


def test_who_normalises(monkeypatch):
    assert why_normalised_ahead(torch.device("cuda")) is None
    assert "cpu" in str(why_normalised_ahead(torch.device("cpu")))
    monkeypatch.setenv("MMHF_DEVICE_NORMALISING", "off")
    assert why_normalised_ahead(torch.device("cuda")) == "MMHF_DEVICE_NORMALISING=off"


def test_a_field_that_the_installed_transformers_lacks_is_named():
    recipe = recipe_from_dict({"task": "image-classification", "data": {"source": "sample"}}, name="r").recipe
    recipe = recipe.model_copy(update={"training": {"of_tomorrow": True}})
    with pytest.raises(InputError, match=r"training\.of_tomorrow: transformers \S+ has no such field"):
        training_arguments(recipe, "run", has_validation=True)
