"""Recipes whose frozen encoders have few bits, from their plans to their releases."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from saved_families import save_tiny_family
from transformers import AutoModel, BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

import mmhf
from mmhf.errors import InputError
from mmhf.inference import JobSettings, predict_table
from mmhf.inference.loading import load_model
from mmhf.models.encoders import fresh_encoder, timm_config
from mmhf.models.tokenizers import train_caption_tokenizer, train_text_tokenizer
from mmhf.sample_data import read_sample

LORA = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}


class Stop(TrainerCallback):
    """Interrupts a run before its fourth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = train_caption_tokenizer(read_sample("train").slice(0, 50)["caption"].to_pylist(), 300)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **ends, initializer_range=0.2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def write(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A recipe of 6 steps in two stages, the second with low-rank changes."""

    def make(bits: int) -> Path:
        values = {
            "task": "image-captioning",
            "model": {
                "vision": {"backbone": "timm/test_efficientnet", "pretrained": False, "features": "avg"},
                "language": {"backbone": str(language), "quantization": {"bits": bits}},
                "projector": {"prefix_length": 2, "hidden_dims": []},
                "lora": LORA,
            },
            "data": {"source": "sample", "limit": 24, "image_size": 32, "max_length": 16},
            "stages": [
                {"name": "projector", "steps": 3, "train": ["projector"], "learning_rate": 1e-2},
                {"name": "lora", "steps": 3, "train": ["projector", "language.lora"], "learning_rate": 1e-2},
            ],
            "generation": {"max_new_tokens": 6},
            "training": {
                "per_device_train_batch_size": 8,
                "eval_strategy": "no",
                "save_strategy": "steps",
                "save_steps": 2,
                "use_cpu": True,
            },
            "evaluation": {"bootstrap": 0, "splits": ["validation"], "baselines": "off"},
            "release": {"repo": "releases", "version": "0.1"},
        }
        path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return make


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            ["model.vision.quantization={bits: 8}", "stages.0.train=['*.layers.1']"],
            r"stage 'a': trains vision\.layers\.1, but the weights of vision have 8 bits for good; leave vision out",
        ),
        (
            ["model.lora={groups: [vision], rank: 1, target_modules: [qkv]}", "stages.0.train=[vision.lora]"],
            r"model\.lora\.target_modules: 'qkv' names vision\.timm_model\.blocks\.0\.attn\.qkv, .* without calling",
        ),
    ],
)
def test_what_shapes_alone_tell_is_refused_before_weights_are_loaded(
    changes: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    fresh_encoder(timm_config("beit_base_patch16_224", preprocessing, sizes)).save_pretrained(tmp_path / "beit")
    values = {
        "task": "image-classification",
        "model": {"vision": {"backbone": str(tmp_path / "beit")}},
        "data": {"source": "sample", "limit": 96, "image_size": 32},
        "stages": [{"name": "a", "steps": 1, "train": ["head"]}],
        "training": {"use_cpu": True, "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "run")},
    }
    monkeypatch.setattr("mmhf.models.image_classifier.building.load_encoder", lambda *_, **__: pytest.fail("loaded"))
    for verb in (mmhf.plan, mmhf.train):
        with pytest.raises(InputError, match=problem):
            verb(values, changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_ends_alike_when_it_was_stopped_and_its_release_refers_to_the_source(
    write: Callable[..., Path], language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmhf.tasks.references.reference_of", lambda backbone: backbone)  # as if on the Hub
    recipe = write(8)
    run = mmhf.train(recipe, ["training.output_dir=run"])
    again = ["training.output_dir=stopped", "release=null"]
    with pytest.raises(KeyboardInterrupt):
        mmhf.train(recipe, again, callbacks=[Stop()])
    assert [path.name for path in Path("stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    stopped = mmhf.train(recipe, again, resume=True)
    assert stopped.metrics == run.metrics and "validation_loss" in run.metrics
    weights = [load_file(each.folder / "model.safetensors") for each in (run, stopped)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    changes = [tensor for name, tensor in weights[0].items() if "lora_B" in name]
    assert len(changes) == 2 * 2 and all(tensor.any() for tensor in changes)

    released = Path("releases/v0.1")
    names = load_file(released / "model.safetensors").keys()
    assert not any(name.startswith("language.") and ".lora_" not in name for name in names)
    config = json.loads((released / "config.json").read_text())
    assert config["language_quantization"] == {"bits": 8, "library": "torchao"}
    assert config["references"] == {"language": str(language)}
    card = (released / "README.md").read_text()
    assert "Weights of `language`: 8 bits, rounded by torchao." in card
    assert "torchvision, timm, peft, torchao and pillow" in card

    (model, processor), drawing = load_model(released), read_sample("validation").slice(0, 1).to_pylist()[0]
    image = Image.open(io.BytesIO(drawing["image"]["bytes"])).convert("RGB")
    written = model.generate(**processor(images=image), generation_config=model.generation_config)
    caption = processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    image.save("image.png")
    pd.DataFrame({"image": ["image.png"]}).to_csv("table.csv", index=False)
    for where in (run.folder, released):
        assert mmhf.pipeline("image-captioning", model=where)("image.png")[0]["caption"] == caption
        predict_table(where, "table.csv", f"{where.name}.csv", JobSettings(device="cpu"))
        assert pd.read_csv(f"{where.name}.csv", keep_default_na=False)["caption"][0] == caption


@pytest.mark.slow
def test_a_source_that_is_no_place_to_fetch_from_is_stored_in_few_bits(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = mmhf.train(write(4), ["training.output_dir=run", "stages.0.steps=1", "stages.1.steps=1"])
    for folder in (run.folder, Path("releases/v0.1")):
        weights = load_file(folder / "model.safetensors")
        for layer in ("k_proj", "q_proj.base_layer"):
            name = f"language.model.layers.0.self_attn.{layer}.weight_quantized_data"
            assert weights[name].dtype == torch.uint8
        assert any("lora_B" in name for name in weights)
    one, other = (load_model(folder)[0] for folder in (run.folder, Path("releases/v0.1")))
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(one.generate(inputs), other.generate(inputs))


def test_a_plan_says_what_few_bits_save(write: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write(8)
    plans = [
        mmhf.plan(recipe, [f"training.output_dir={tmp_path}/run", f"release.repo={tmp_path}", *more])
        for more in ([], ["model.language.quantization=null"])
    ]
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert not plans[0].problems
    assert plans[0].run["quantization"].startswith(f"language: {weights:,} weights in 8 bits, ")
    assert "quantization" not in plans[1].run
    saved = [plans[1].stages[n].memory.weights - plans[0].stages[n].memory.weights for n in (0, 1)]
    assert saved[0] == saved[1] and 2.5 * weights < saved[0] < 3 * weights
    # Nothing of the weights is kept for the backward pass.
    assert plans[0].stages[0].memory.activations <= plans[1].stages[0].memory.activations


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of both encoders in few bits, of images in their own shape and of all blocks' features, with random
    weights in folders; its second stage has low-rank changes of the texts' encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    AutoModel.from_pretrained(save_tiny_family("fusion of own shapes", folder / "both")).vision.save_pretrained(
        folder / "vision"
    )
    captions = read_sample("train").slice(0, 50)["caption"].to_pylist()
    tokenizer = train_text_tokenizer(captions, vocab_size=300, max_length=16)
    tokenizer.save_pretrained(folder / "text")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)).save_pretrained(folder / "text")
    few = {"vision": {"bits": 4, "library": "bitsandbytes"}, "text": {"bits": 8}}
    encoders = {name: {"backbone": str(folder / name), "quantization": each} for name, each in few.items()}
    return {
        "task": "image-text-classification",
        "model": {
            "vision": {**encoders["vision"], "pooling": "blocks"},
            "text": {**encoders["text"], "pooling": "mean"},
            "embedding_dim": 8,
            "lora": {"groups": ["text"], "rank": 2, "target_modules": ["query", "value"]},
        },
        "data": {"source": "sample", "limit": 24, "image_size": 32, "resize": "naflex", "max_length": 16},
        "stages": [
            {"name": "head", "steps": 3, "train": ["fusion", "head"], "learning_rate": 1e-2},
            {"name": "lora", "steps": 3, "train": ["fusion", "head", "text.lora"], "learning_rate": 1e-2},
        ],
        "cache": "on",
        "training": {
            "output_dir": "run",
            "per_device_train_batch_size": 8,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
        },
        "evaluation": {"splits": ["validation"], "baselines": "off", "by_modality": False},
        "release": {"repo": "releases", "version": "0.1"},
    }


@pytest.mark.slow
def test_a_classifier_of_few_bits_stores_trains_resumes_is_released_and_served(
    classifier: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmhf.tasks.references.reference_of", lambda backbone: backbone)  # as if on the Hub
    planned = mmhf.plan(classifier)
    assert planned.problems == []
    assert "vision: " in planned.run["quantization"] and " weights in 4 bits" in planned.run["quantization"]
    assert "; text: " in planned.run["quantization"] and " weights in 8 bits" in planned.run["quantization"]
    assert "vision (" in planned.cached[0] and "text (" in planned.cached[0] and "vision (" in planned.cached[1]
    run = mmhf.train(classifier)
    again = ["training.output_dir=stopped", "release=null"]
    with pytest.raises(KeyboardInterrupt):
        mmhf.train(classifier, again, callbacks=[Stop()])
    stopped = mmhf.train(classifier, again, resume=True)
    recomputed = mmhf.train(classifier, ["training.output_dir=recomputed", "release=null", "cache=off"])
    weights = [load_file(each.folder / "model.safetensors") for each in (run, stopped, recomputed)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
        torch.testing.assert_close(tensor, weights[2][name], rtol=1e-3, atol=1e-4)
    assert all(tensor.any() for name, tensor in weights[0].items() if "lora_B" in name)

    released = Path("releases/v0.1")
    names = load_file(released / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names if ".lora_" not in name}.isdisjoint({"vision", "text"})
    config = json.loads((released / "config.json").read_text())
    assert config["references"] == {name: classifier["model"][name]["backbone"] for name in ("vision", "text")}
    assert config["vision_quantization"] == {"bits": 4, "library": "bitsandbytes"}
    card = (released / "README.md").read_text()
    assert "Weights of `text`: 8 bits, rounded by torchao." in card
    assert "timm, peft, bitsandbytes, torchao and pillow" in card
    drawing = read_sample("validation").slice(0, 1).to_pylist()[0]
    Image.open(io.BytesIO(drawing["image"]["bytes"])).convert("RGB").save("image.png")
    pd.DataFrame({"image": ["image.png"], "text": ["a red frog"]}).to_csv("table.csv", index=False)
    for where in (run.folder, released):
        [said, *_] = mmhf.pipeline("image-text-classification", model=where)(
            {"image": "image.png", "text": "a red frog"}
        )
        predict_table(where, "table.csv", f"{where.name}.csv", JobSettings(device="cpu"))
        assert pd.read_csv(f"{where.name}.csv")[f"probability_{said['label']}"][0] == pytest.approx(said["score"])
