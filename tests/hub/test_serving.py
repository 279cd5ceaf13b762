"""Released models, by their tags, where mmhf is and where it is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_environment import make_clean_environment
from closeness import check_alike
from few_bits import in_few_bits
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from loopback_store import card_problems
from safetensors.torch import load
from saved_families import FAMILIES, Family, model_inputs, write_family_run, write_image
from transformers import AutoModel, dynamic_module_utils

import mmhf
from mmhf.hub.lineage import release_settings
from mmhf.hub.manifest import ReleaseNotes
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model
from mmhf.models.adapting import lora_values
from mmhf.recipe.sections import LoraSection

VERSIONS = ("1.6", "1.7", "1.8")


def _push_versions(folder: Path, name: str) -> dict[str, Path]:
    """Three versions of one family, each the parent of the next; gives version → run folder."""
    runs, parent = {}, None
    for seed, version in enumerate(VERSIONS):
        run_dir = write_family_run(
            folder / name / version, name, seed=seed, metrics={"test_accuracy": 0.5 + seed / 10}
        )
        settings = release_settings({"repo": _repo(name), "version": version, "push": True})
        push_release(run_dir, settings, notes=ReleaseNotes(parent=parent))
        parent = resolve_model(f"{_repo(name)}@{version}").reference
        runs[version] = run_dir
    return runs


def _repo(name: str) -> str:
    return f"org/{name.replace(' ', '-')}"


def _output(path: Path, family: Family) -> Any:
    with torch.no_grad():
        return AutoModel.from_pretrained(path).eval()(**model_inputs(family))[family.output].tolist()


@pytest.mark.slow
def test_every_version_is_served_alike_without_mmhf(hub: LoopbackHub, tmp_path: Path):
    image = str(write_image(tmp_path / "photo.jpg"))
    runs = {name: _push_versions(tmp_path / "runs", name) for name in FAMILIES}
    jobs, expected = [], []
    for name, family in FAMILIES.items():
        inputs = {key: tensor.tolist() for key, tensor in model_inputs(family).items()}
        for version, run_dir in runs[name].items():
            job = {"repo": _repo(name), "revision": f"v{version}", "task": family.pipeline_task, "inputs": inputs}
            job |= {"output": family.output, "arguments": family.arguments(image), "call": family.call}
            jobs.append(job)
            expected.append((_output(run_dir, family), _answer(run_dir, family, image)))
    answers = _serve_in_clean_environment(hub, tmp_path, jobs)
    for job, answer, (output, said) in zip(jobs, answers, expected, strict=True):
        check_alike(answer["output"], output)
        check_alike(answer["answer"], said)
        assert re.search("label|caption", answer["printed"]), "the snippet on the card says something"
        assert card_problems(hub.files(job["repo"], job["revision"])["README.md"].decode()) == []
        assert answer["module"].startswith("transformers_modules."), "the code came with the release"
    outputs = [json.dumps(output) for output, _ in expected]
    assert len(set(outputs)) == len(outputs), "versions must differ for this test to show anything"


@pytest.mark.slow
def test_an_encoder_held_by_reference_is_fetched_at_its_pinned_commit_and_changed_as_it_was(
    hub: LoopbackHub, tmp_path: Path
):
    family = FAMILIES["captioner"]
    torch.manual_seed(0)
    model, processor = family.make()
    pinned = _push_encoder(tmp_path / "encoder", model.vision)
    run_dir = write_family_run(tmp_path / "run", "captioner", seed=0, metrics={"test_rougeL": 0.5})
    model.refer_to({"vision": f"org/encoder@{pinned}"})
    model.add_lora(lora_values(model, LoraSection(rank=2), ["vision"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(run_dir)
    push_release(run_dir, release_settings({"repo": "org/small", "version": "1.0", "push": True}))
    # What the repository's main branch holds by now has nothing to do with the release.
    assert _push_encoder(tmp_path / "other", family.make()[0].vision) != pinned

    weights = load(hub.files("org/small", "v1.0")["model.safetensors"])
    assert {name.split(".")[0] for name in weights if ".lora_" not in name} == {"projector", "language"}
    assert any(name.startswith("vision.") for name in weights)
    image = str(write_image(tmp_path / "photo.jpg"))
    inputs = {key: tensor.tolist() for key, tensor in model_inputs(family).items()}
    job = {"repo": "org/small", "revision": "v1.0", "task": family.pipeline_task, "inputs": inputs}
    job |= {"output": family.output, "arguments": [image], "call": {}}
    [answer] = _serve_in_clean_environment(hub, tmp_path, [job], "peft")
    with torch.no_grad():
        check_alike(answer["output"], model.eval()(**model_inputs(family))[family.output].tolist())


@pytest.mark.slow
def test_weights_of_few_bits_are_stored_or_rounded_again(hub: LoopbackHub, tmp_path: Path):
    jobs, expected = [], []
    for name, refers in (("image classifier of own shapes", True), ("fusion of own shapes", False)):
        family = FAMILIES[name]
        torch.manual_seed(0)
        full, _ = family.make()
        few = in_few_bits(full)
        run_dir = write_family_run(tmp_path / name, name, seed=0, metrics={"test_accuracy": 0.5})
        if refers:
            few.refer_to({"vision": f"org/encoder@{_push_encoder(tmp_path / 'encoder', full.vision)}"})
        few.save_pretrained(run_dir)
        push_release(run_dir, release_settings({"repo": _repo(name), "version": "1.0", "push": True}))
        parts = {key.split(".")[0] for key in load(hub.files(_repo(name), "v1.0")["model.safetensors"])}
        assert ("vision" in parts) != refers
        inputs = {key: tensor.tolist() for key, tensor in model_inputs(family).items()}
        job = {"repo": _repo(name), "revision": "v1.0", "task": family.pipeline_task, "inputs": inputs}
        job |= {"output": family.output, "arguments": family.arguments(str(write_image(tmp_path / "photo.jpg")))}
        jobs.append({**job, "call": family.call})
        with torch.no_grad():
            expected.append(few(**model_inputs(family))[family.output].tolist())
    answers = _serve_in_clean_environment(hub, tmp_path, jobs, "torchao")
    for answer, output in zip(answers, expected, strict=True):
        check_alike(answer["output"], output)


def _push_encoder(folder: Path, encoder: Any) -> str:
    """Give `org/encoder` these weights; returns the commit."""
    encoder.save_pretrained(folder)
    api = HfApi()
    api.create_repo("org/encoder", exist_ok=True)
    return str(api.upload_folder(repo_id="org/encoder", folder_path=folder).oid)


def _answer(run_dir: Path, family: Family, image: str) -> Any:
    answer = mmhf.pipeline(family.pipeline_task, model=str(run_dir))(*family.arguments(image), **family.call)
    return json.loads(json.dumps(answer))


def _serve_in_clean_environment(
    hub: LoopbackHub, folder: Path, jobs: list[dict[str, Any]], *more: str
) -> list[dict[str, Any]]:
    python = make_clean_environment(folder / "clean", *more)
    variables = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "clean_home"),
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    script = Path(__file__).with_name("serve_releases.py")
    done = subprocess.run(
        [str(python), str(script), *more],
        input=json.dumps(jobs),
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_with_mmhf_no_remote_code_is_needed_or_run(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("remote code was asked for")

    family = FAMILIES[name]
    image = str(write_image(tmp_path / "photo.png"))
    run_dir = write_family_run(tmp_path / "run", name, seed=0, metrics={"test_accuracy": 0.5})
    push_release(run_dir, release_settings({"repo": _repo(name), "version": "1.0", "push": True}))
    monkeypatch.setattr(dynamic_module_utils, "get_cached_module_file", refuse)
    path = resolve_model(f"{_repo(name)}@v1.0").path
    check_alike(_output(path, family), _output(run_dir, family))
    for trust in (None, True):
        served = mmhf.pipeline(family.pipeline_task, model=_repo(name), revision="v1.0", trust_remote_code=trust)
        assert type(served.model).__module__.startswith("mmhf.")
        answer = json.loads(json.dumps(served(*family.arguments(image), **family.call)))
        check_alike(answer, _answer(run_dir, family, image))
