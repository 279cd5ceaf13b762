"""Checkpoints of the plant-disease program, and of torchvision's classifiers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seed_models import plant_model, settle
from torchvision import models

from mmhf.cli import main
from mmhf.hub.manifest import verify_release
from mmhf.inference.loading import load_model

CLASSES = [f"leaf_{letter}" for letter in "abc"]


def save(model: torch.nn.Module, name: str, path: Path, *, num_classes: int = 3) -> Path:
    checkpoint = {
        "epoch": 4,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(),
        "val_f1": np.float64(0.87),  # as scikit-learn gives it
        "model_name": name,
        "num_classes": num_classes,
    }
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "efficientnet_b0"))],
)
def test_the_converted_model_has_the_seeds_logits(name, tmp_path, convert):
    torch.manual_seed(0)
    seed = plant_model(name, 3)
    path, output = save(seed, name, tmp_path / f"{name}_best.pth"), tmp_path / "plants" / "v1.0"
    said = convert(path, "-o", output, "--labels", ",".join(CLASSES))
    assert "head: " in said
    model, _ = load_model(output)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=images).logits, seed(images), atol=1e-5, rtol=1e-5)
    assert list(model.config.id2label.values()) == CLASSES
    release = verify_release(output)
    assert (release.version, release.metrics) == ("v1.0", {"validation_f1_macro": 0.87})


@pytest.mark.slow
def test_what_is_converted_evaluates_predicts_and_is_gone_on_with(tmp_path, convert, capsys):
    torch.manual_seed(0)
    path = save(plant_model("mobilenetv3", 3), "mobilenetv3", tmp_path / "mobilenetv3_best.pth")
    data, output = tmp_path / "data", tmp_path / "plants"
    for number, label in enumerate(CLASSES * 4):
        folder = data / label
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    convert(path, "-o", output, "--labels", data)
    shared = [f"data.path={data}", "data.image_size=32", "data.split={validation: 0.25, test: 0.25}"]
    assert main(["evaluate", str(output), *shared, "--split", "test"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["predict", str(output), "--input", str(data / CLASSES[0]), "--output", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 5
    run = [f"training.output_dir={tmp_path / 'run'}", "training.per_device_train_batch_size=2", f"init_from={output}"]
    stage = "stages=[{name: all, steps: 1}]"
    assert main(["train", str(output / "recipe.yaml"), *shared, *run, stage, "evaluation.splits=[test]"]) == 0


@pytest.mark.slow
def test_any_classifier_of_torchvision_by_name(tmp_path, convert):
    torch.manual_seed(0)
    for name in ("resnet18", "mobilenet_v3_small", "vit_b_32"):
        seed = settle(models.get_model(name, weights=None, num_classes=5))
        if name.startswith("vit"):  # torchvision starts its last layer at 0
            torch.nn.init.normal_(seed.heads.head.weight)
        torch.save(seed.state_dict(), tmp_path / f"{name}.pth")
        convert(tmp_path / f"{name}.pth", "--vision", f"torchvision/{name}", "-o", tmp_path / name)
        model, _ = load_model(tmp_path / name)
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values=images).logits, seed(images), atol=1e-5, rtol=1e-5)


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.slow
def test_bad_files_are_one_line_and_leave_nothing(tmp_path, refused, capsys):
    output = tmp_path / "out" / "v1"
    model = plant_model("mobilenetv3", 3)
    whole = save(model, "mobilenetv3", tmp_path / "whole.pth")

    def message(path: Path, *more: object) -> str:
        line = refused(path, "-o", output, *more)
        assert not output.exists()
        assert not list(output.parent.glob(".*"))
        return line

    torch.save({"model_state_dict": model.state_dict(), "extra": Code()}, tmp_path / "code.pth")
    assert "holds code or objects (print), which are not run" in message(tmp_path / "code.pth")
    (tmp_path / "short.pth").write_bytes(whole.read_bytes()[:50000])
    assert "no whole file of torch.save" in message(tmp_path / "short.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert "no file of torch.save" in message(tmp_path / "text.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    assert "no weights in it" in message(tmp_path / "empty.pth")
    assert "no such file" in message(tmp_path / "absent.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "of no known program; name it with --from" in message(tmp_path / "other.pth")
    assert "no torchvision/resnet18 in it" in message(whole, "--vision", "torchvision/resnet18")
    wrong = save(model, "mobilenetv3", tmp_path / "classes.pth", num_classes=4)
    assert "it says 4 classes, but classifier.4.weight tells 3 apart" in message(wrong)
    assert "3 classes apart, but 2 names are given (a, b)" in message(whole, "--labels", "a,b")
    state = {**model.state_dict(), "gate.weight": torch.zeros(3), "gate.scale": torch.zeros(())}
    torch.save({"model_state_dict": state, "model_name": "mobilenetv3"}, tmp_path / "more.pth")
    assert "2 tensors have no place in the model: gate.weight, gate.scale" in message(tmp_path / "more.pth")
    del state["gate.weight"], state["features.0.0.weight"]
    torch.save({"model_state_dict": state, "model_name": "mobilenetv3"}, tmp_path / "fewer.pth")
    assert "no torchvision/mobilenet_v3_small in it" in message(tmp_path / "fewer.pth")
    assert "run" not in capsys.readouterr().out
    output.mkdir(parents=True)
    assert "exists; name a new folder" in refused(whole, "-o", output)


@pytest.mark.slow
def test_what_is_left_over_may_be_lost_by_name(tmp_path, convert):
    model = plant_model("mobilenetv3", 3)
    torch.save(
        {"model_state_dict": {**model.state_dict(), "gate.scale": torch.zeros(())}, "model_name": "mobilenetv3"},
        tmp_path / "more.pth",
    )
    convert(tmp_path / "more.pth", "-o", tmp_path / "out", "--allow-missing", "gate.*")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_converting_takes_the_memory_of_the_weights_and_leaves_the_optimizers_on_disk(tmp_path):
    seed = models.resnet152(weights=None, num_classes=4)
    state = seed.state_dict()
    moments = {"state": {index: torch.zeros(10_000_000) for index in range(12)}}
    torch.save({"model_state_dict": state, "optimizer_state_dict": moments}, tmp_path / "old.pth")
    torch.save(models.resnet18(weights=None, num_classes=4).state_dict(), tmp_path / "small.pth")
    # A small one first, for what the libraries take once.
    script = """
import resource, sys
from mmhf.cli import main
def convert(name, vision):
    assert main(["convert", f"{sys.argv[1]}/{name}.pth", "--vision", vision, "-o", f"{sys.argv[1]}/{name}"]) == 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = convert("small", "torchvision/resnet18")
print(convert("old", "torchvision/resnet152") - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = (tmp_path / "old" / "model.safetensors").stat().st_size
    assert int(done.stdout.splitlines()[-1]) < 1.2 * weights
