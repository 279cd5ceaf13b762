"""Averages of models are those of torch; what does not fit is named before anything is written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_families import write_family_run

from mmhf.errors import InputError
from mmhf.hub import averaging
from mmhf.hub.averaging import Ingredient, refuse_misfits, shared_fingerprint, write_average
from mmhf.hub.releases import ResolvedModel, resolve_model
from mmhf.inference.loading import load_model


def write_runs(folder: Path, count: int = 3) -> list[ResolvedModel]:
    runs = []
    for seed in range(count):
        (folder / f"run{seed}").mkdir()
        path = write_family_run(folder / f"run{seed}", "image classifier", seed=seed, metrics={"a": 1.0})
        lineage = {"parent": None, "data_fingerprint": {"train": "same", "test": f"of {seed}"}}
        (path / "lineage.json").write_text(json.dumps(lineage))
        runs.append(resolve_model(path))
    return runs


def change(model: ResolvedModel, name: str, **values: Any) -> None:
    path = model.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_each_tensor_is_torchs_weighted_average(tmp_path: Path) -> None:
    runs, shares = write_runs(tmp_path), (0.5, 0.3, 0.2)
    change(runs[0], "config.json", calibration_temperature=2.5)
    parents = [load_file(run.path / "model.safetensors") for run in runs]
    counters = [name for name, tensor in parents[0].items() if not tensor.is_floating_point()]
    assert counters  # batch norm has them
    output = tmp_path / "soup"
    output.mkdir()
    refuse_misfits(runs)
    write_average(output, [Ingredient(*each) for each in zip(runs, shares, strict=True)], fingerprint={})
    found = load_file(output / "model.safetensors")
    assert found.keys() == parents[0].keys()
    for name, tensor in found.items():
        expected = parents[0][name]
        if name not in counters:
            stacked = torch.stack([parent[name] for parent in parents])
            expected = torch.einsum("n...,n->...", stacked.double(), torch.tensor(shares).double()).to(expected.dtype)
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    model, _ = load_model(output)
    assert model.config.calibration_temperature == 1.0  # the first one's was fitted to its own logits
    soup = json.loads((output / "lineage.json").read_text())["soup"]
    named = [(run.repo, run.commit, share) for run, share in zip(runs, shares, strict=True)]
    assert [(each["repo"], each["commit"], each["weight"]) for each in soup] == named
    assert json.loads((output / "metrics.json").read_text()) == {}  # the first one's numbers are not the average's


def test_a_share_of_one_gives_the_model_back_bit_by_bit_in_half_precision_too(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, 2)
    for run in runs:
        weights = load_file(run.path / "model.safetensors")
        halves = {name: each.half() if each.is_floating_point() else each for name, each in weights.items()}
        save_file(halves, run.path / "model.safetensors", metadata={"format": "pt"})
    write_average(tmp_path, [Ingredient(runs[0], 1.0), Ingredient(runs[1], 0.0)], fingerprint={})
    given, found = (load_file(path / "model.safetensors") for path in (runs[0].path, tmp_path))
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)


def test_only_rows_that_all_saw_are_remembered(tmp_path: Path) -> None:
    assert shared_fingerprint(write_runs(tmp_path)) == {"train": "same"}


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("config.json", {"id2label": {"0": "true", "1": "fake"}}, 'its id2label.0 is "true", not "fake"'),
        ("config.json", {"vision_pooling": "max"}, "its vision_pooling is"),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.1, 0.1]}, "preprocessor_config.json differs"),
    ],
)
def test_every_model_that_does_not_fit_is_named(tmp_path: Path, file: str, values: dict[str, Any], why: str) -> None:
    runs = write_runs(tmp_path, 4)
    name = file if (runs[0].path / file).is_file() else "processor_config.json"
    for run in runs[1:3]:
        change(run, name, **values)
    with pytest.raises(InputError) as refused:
        refuse_misfits(runs)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [str(run.path) for run in runs[1:3]]
    assert all(why.replace(file, name) in line for line in lines)


def test_tensors_of_other_shapes_or_names_do_not_fit_and_losses_may_differ(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, 2)
    change(runs[1], "config.json", label_smoothing=0.1, head_dropout=[0.5, 0.5])
    refuse_misfits(runs)
    weights = load_file(runs[1].path / "model.safetensors")
    first = next(name for name in weights if name.startswith("head."))
    save_file({**weights, first: weights[first][:1].clone()}, runs[1].path / "model.safetensors")
    with pytest.raises(InputError, match=f"its {first} is "):
        refuse_misfits(runs)
    del weights[first]
    save_file(weights, runs[1].path / "model.safetensors")
    with pytest.raises(InputError, match=f"it lacks the tensor {first}"):
        refuse_misfits(runs)


def test_each_tensor_of_each_model_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_runs(tmp_path, count=5)
    read: Counter[tuple[Path, str]] = Counter()
    opened: Counter[Path] = Counter()

    class Watched:
        def __init__(self, path: Path, **options: Any) -> None:
            self.path, self.file = path, safe_open(path, **options)
            opened[path] += 1

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read[self.path, name] += 1
            return self.file.get_tensor(name)

    monkeypatch.setattr(averaging, "safe_open", Watched)
    output = tmp_path / "soup"
    output.mkdir()
    write_average(output, [Ingredient(run, 0.2) for run in runs], fingerprint={})
    first = load_file(runs[0].path / "model.safetensors")
    summed = {name for name, tensor in first.items() if tensor.is_floating_point()}
    counters = {(runs[0].path / "model.safetensors", name) for name in first.keys() - summed}
    expected = {(run.path / "model.safetensors", name) for run in runs for name in summed} | counters
    assert read == dict.fromkeys(expected, 1)
    assert opened == {run.path / "model.safetensors": 1 for run in runs}
