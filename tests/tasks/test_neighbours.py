"""Captioners with neighbours in whole runs: what is refused, what is kept, and that resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mmhf
from mmhf import pipeline
from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.inference.loading import load_model
from mmhf.models.captioner.neighbours import Neighbours
from mmhf.recipe import load_recipe
from mmhf.sample_data import read_sample

TINY = [
    "model.vision={backbone: timm/test_efficientnet, pretrained: false, features: patches}",
    "model.projector.prefix_length=null",
    "model.neighbours={count: 3, apart: subgroup, votes: {}}",
    "data.limit=48",
    "data.image_size=32",
    "cache=on",
    "training.num_train_epochs=2",
    "training.eval_strategy=epoch",
    "training.save_strategy=epoch",
    "evaluation.generate_rows=8",
    "evaluation.bootstrap=0",
    "evaluation.subgroups=[group]",
]


def train(run: Path, *changes: str) -> mmhf.TrainedRun | Any:
    return mmhf.train("quickstart/captioner", [*TINY, f"training.output_dir={run}", *changes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbours")
    train(folder / "run", "~release")
    return folder


@pytest.mark.slow
def test_a_release_writes_what_the_model_does_with_the_captions_that_it_keeps(trained: Path) -> None:
    model, processor = load_model(trained / "run", device=torch.device("cpu"))
    groups = json.loads((trained / "run" / "evaluation.json").read_text())["tables"]["validation"]["By group"]
    assert sum(row["rows"] for row in groups) == 48 and all("rougeL" in row for row in groups)
    known = model.neighbours
    assert (known.rows >= 0).all() and len(known.rows) == 48
    drawings = read_sample("train").to_pylist()
    end = processor.tokenizer.eos_token_id
    assert known.voting == {"count": 32, "temperature": 0.04, "weight": 0.9, "end": end}
    expected = {f" {row['captions'][0]}" for row in drawings}
    assert {processor.tokenizer.decode(ids[ids >= 0]) for ids in known.captions} <= expected
    releases = trained / "releases"
    assert main(["release", str(trained / "run"), "--repo", str(releases), "--version", "1.0"]) == 0
    caption = pipeline("image-captioning", model=releases / "v1.0")
    (answer,) = caption(str(_write(trained / "one.png", drawings[0]["image"]["bytes"])))
    image = processor(images=[_opened(trained / "one.png")])
    assert answer["caption"] == processor.captions(model.generate(**image))[0]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_neighbours_and_ends_with_the_same_bits(trained: Path) -> None:
    checkpoints = sorted((trained / "run").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    again = trained / "again"
    train(again, "~release", f"training.resume_from_checkpoint={checkpoints[0]}")
    weights = [load_file(run / "model.safetensors") for run in (trained / "run", again)]
    assert weights[0].keys() == weights[1].keys() and "neighbours.captions" in weights[0]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_what_cannot_be_looked_up_or_exported_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "refused"
    with pytest.raises(InputError, match="stage 'train' trains the image encoder, and what is alike would change"):
        train(run, "~release", "model.freeze_vision=false")
    with pytest.raises(InputError, match="found by stored features of the images: .*; set cache: on"):
        train(run, "~release", "cache=off")
    with pytest.raises(InputError, match="neighbours.apart: column 'vendor' has only 'noto' in the training split"):
        train(run, "~release", "model.neighbours.apart=vendor")
    with pytest.raises(InputError, match="vendr"):
        train(run, "~release", "model.neighbours.apart=vendr")
    found = mmhf.plan("quickstart/captioner", [*TINY, "cache=auto", "training.num_train_epochs=1"])
    assert not found.problems, "one epoch, in which storing saves nothing"
    problems = mmhf.plan("quickstart/captioner", [*TINY, "model.freeze_vision=false"]).problems
    assert any("model.neighbours: stage 'train' trains the image encoder" in each for each in problems)
    with pytest.raises(InputError, match=r"model.neighbours: init_from .* reads captions of similar images"):
        train(run, "~release", "~model.neighbours", f"init_from={trained / 'run'}")
    assert main(["export", str(trained / "run"), "--output", str(trained / "exported")]) == 2
    assert "looks up captions of its training images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_from_another_knows_its_own_images_and_tells_none_of_itself(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[bool, bool]] = []
    find = Neighbours.find

    def watched(
        known: Neighbours, features: torch.Tensor, image_index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nearest, places = find(known, features, image_index)
        if image_index is not None:
            assert not (known.rows[places] == image_index[:, None])[places >= 0].any()
            alike = known.apart[known.rows[places]] == known.apart[image_index][:, None]
            assert (places >= 0).any() and not alike[places >= 0].any(), "those of its subgroup are kept apart"
        found.append((torch.is_grad_enabled(), image_index is not None))
        return nearest, places

    monkeypatch.setattr(Neighbours, "find", watched)
    train(trained / "more", "~release", "data.limit=40", f"init_from={trained / 'run'}")
    model, _ = load_model(trained / "more", device=torch.device("cpu"))
    assert (model.neighbours.rows >= 0).sum() == len(model.neighbours.rows) == 40
    assert set(found) == {(True, True), (False, False)}, "in each step of training, and in no evaluation"


def test_neighbours_make_the_prompt_alone() -> None:
    with pytest.raises(InputError, match="`neighbours` make the prompt, and `prompt` is another"):
        load_recipe("quickstart/captioner", ["model.neighbours={}", "model.prompt=a picture of"])


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _opened(path: Path) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")
