"""Released low-rank changes: merged, they need neither peft nor mmhf; apart, the encoder is fetched from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from few_bits import in_few_bits
from loopback_hub import LoopbackHub
from safetensors import safe_open
from saved_families import FAMILIES, model_inputs, save_tiny_family, write_family_run
from test_averaging import write_runs

from mmhf.errors import InputError
from mmhf.hub.averaging import refuse_misfits
from mmhf.hub.lineage import release_settings
from mmhf.hub.manifest import ReleaseNotes, read_release
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model, write_release
from mmhf.inference.loading import load_model
from mmhf.models.adapting import lora_values
from mmhf.recipe.sections import LoraSection


def write_adapted_run(folder: Path, name: str, *, backbones: bool = True) -> Any:
    """A finished run of a model with low-rank changes in all of its encoders, which lie in folders of their own."""
    write_family_run(folder / "run", name, seed=0, metrics={"test_accuracy": 0.5})
    model: Any = load_model(folder / "run")[0]
    for part, encoder in model.encoders().items() if backbones else ():
        encoder.save_pretrained(folder / part)
        setattr(model.config, f"{part}_backbone", str(folder / part))
    model.add_lora(lora_values(model, LoraSection(rank=2, dora=True), list(model.encoders())))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder / "run")
    return model.eval()


def answer(name: str, model: Any) -> torch.Tensor:
    family = FAMILIES[name]
    with torch.no_grad():
        given = model.eval()(**model_inputs(family))
    output: torch.Tensor = given[family.output]
    return output


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return set(weights.keys())


@pytest.mark.parametrize("name", FAMILIES)
def test_changes_are_merged_unless_they_are_to_be_kept(name: str, tmp_path: Path) -> None:
    save_tiny_family(name, tmp_path / "plain")
    plain, model = names_in(tmp_path / "plain"), write_adapted_run(tmp_path, name)
    merged = write_release(tmp_path / "run", tmp_path / "releases", "1.0")
    assert names_in(merged) == plain
    loaded = load_model(merged)[0]
    torch.testing.assert_close(answer(name, loaded), answer(name, model))
    assert loaded.config.lora is None
    assert read_release(merged).extra["lora"] == {"form": "merge", "rank": 2, "alpha": 16.0, "dora": True}
    card = (merged / "README.md").read_text()
    assert "DoRA of rank 2, alpha 16: merged into the weights." in card and "peft" not in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fusion", "captioner", "dual encoder"])
def test_kept_apart_they_stand_without_the_encoders_that_stay_as_they_were(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_adapted_run(tmp_path, name)
    monkeypatch.setattr("mmhf.hub.low_rank.reference_of", lambda backbone: backbone)  # folders are no references
    before, parts = names_in(tmp_path / "run"), list(model.encoders())
    kept = write_release(tmp_path / "run", tmp_path / "releases", "1.0", notes=ReleaseNotes(lora="keep"))
    of_encoders = [key for key in names_in(kept) if key.partition(".")[0] in parts]
    assert of_encoders and all(".lora_" in key for key in of_encoders)
    references = json.loads((kept / "config.json").read_text())["references"]
    assert references == {part: str(tmp_path / part) for part in parts}
    loaded = load_model(kept)[0]
    assert torch.equal(answer(name, loaded), answer(name, model))
    assert "needs transformers, torch, torchvision, timm, peft and pillow" in (kept / "README.md").read_text()
    assert names_in(tmp_path / "run") == before  # a release changes nothing of the run
    # Merged, it is a whole model.
    loaded.merge_lora()
    loaded.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(answer(name, type(loaded).from_pretrained(tmp_path / "whole")), answer(name, model))


def test_an_encoder_that_has_been_trained_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_adapted_run(tmp_path, "fusion")
    monkeypatch.setattr("mmhf.hub.low_rank.reference_of", lambda backbone: backbone)
    with torch.no_grad():
        next(model.text.parameters()).add_(1e-6)
    model.save_pretrained(tmp_path / "run")
    kept = write_release(tmp_path / "run", tmp_path / "releases", "1.0", notes=ReleaseNotes(lora="keep"))
    assert json.loads((kept / "config.json").read_text())["references"] == {"vision": str(tmp_path / "vision")}
    assert any(key.startswith("text.") and ".lora_" not in key for key in names_in(kept))
    assert torch.equal(answer("fusion", load_model(kept)[0]), answer("fusion", model))


def test_beside_weights_of_few_bits_another_encoder_is_referred_to_where_it_stayed_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmhf.hub.low_rank.reference_of", lambda name: name if name.endswith("vision") else None)
    full, _ = FAMILIES["fusion"].make()
    few = in_few_bits(full, parts=["text"])
    full.vision.save_pretrained(tmp_path / "vision")
    few.config.vision_backbone, few.config.text_backbone = str(tmp_path / "vision"), "a folder"
    few.add_lora(lora_values(few, LoraSection(rank=2), ["vision", "text"]))
    write_family_run(tmp_path / "run", "fusion", seed=0, metrics={"test_accuracy": 0.5})
    few.save_pretrained(tmp_path / "run")
    kept = write_release(tmp_path / "run", tmp_path / "releases", "1.0")
    assert json.loads((kept / "config.json").read_text())["references"] == {"vision": str(tmp_path / "vision")}
    assert torch.equal(answer("fusion", load_model(kept)[0]), answer("fusion", few))
    with pytest.raises(InputError, match="cannot be merged into weights of 8 bits"):
        write_release(tmp_path / "run", tmp_path / "releases", "1.1", notes=ReleaseNotes(lora="merge"))


def test_a_model_without_changes_is_not_released_as_if_it_had_some(tmp_path: Path) -> None:
    write_family_run(tmp_path / "run", "image classifier", seed=0, metrics={"test_accuracy": 0.5})
    with pytest.raises(InputError, match=r"release\.lora: keep, but the model has no low-rank changes"):
        write_release(tmp_path / "run", tmp_path / "releases", "1.0", notes=ReleaseNotes(lora="keep"))
    assert not list((tmp_path / "releases").glob("v*"))


def test_a_push_merges_a_copy_and_leaves_the_run_as_it_is(hub: LoopbackHub, tmp_path: Path) -> None:
    model = write_adapted_run(tmp_path, "image classifier", backbones=False)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    push_release(tmp_path / "run", release_settings({"repo": "org/small", "version": "1.0", "push": True}))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    loaded = load_model(resolve_model("org/small@v1.0").path)[0]
    torch.testing.assert_close(answer("image classifier", loaded), answer("image classifier", model))


def test_factors_are_not_averaged(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, 1)
    write_adapted_run(tmp_path, "image classifier", backbones=False)
    with pytest.raises(InputError, match=r"release both with `--lora merge` first"):
        refuse_misfits([*runs, resolve_model(tmp_path / "run")])
