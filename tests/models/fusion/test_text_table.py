"""A fusion classifier whose text encoder is a table: its config, its weights, and how it reads texts all the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_environment import make_clean_environment
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor

from mmhf.errors import InputError
from mmhf.hub.remote_code import add_remote_code
from mmhf.inference.pipelines import ImageTextClassificationPipeline
from mmhf.models.backbones import load_encoder_config
from mmhf.models.fusion import FusionForImageTextClassification, FusionProcessor
from mmhf.models.fusion.building import check_same_table
from mmhf.models.text_tables import TableEncoder, load_table_encoder, weights_digest

_SERVE = """
import json, sys
from transformers import pipeline
serve = pipeline("image-text-classification", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(serve([{"image": sys.argv[2], "text": text} for text in sys.argv[3:]])))
assert "mmhf" not in sys.modules
"""


@pytest.fixture(scope="session")
def table(text_encoder_dir: Path) -> TableEncoder:
    weights = weights_digest(AutoModel.from_pretrained(text_encoder_dir))
    name = str(text_encoder_dir)
    return TableEncoder(name, name, weights, pooling="mean", prefix="a ", max_length=16, width=32)


@pytest.fixture
def table_model(tiny_config: Any, table: TableEncoder) -> FusionForImageTextClassification:
    torch.manual_seed(0)
    text_config = load_encoder_config(table.source)
    config = tiny_config(
        text_config=text_config, text_pooling="mean", text_table=table.to_dict(), initializer_range=0.5
    )
    return FusionForImageTextClassification(config).eval()


@pytest.fixture
def processor(table: TableEncoder) -> FusionProcessor:
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=square, do_center_crop=False, crop_size=square)
    tokenizer = AutoTokenizer.from_pretrained(table.source)
    return FusionProcessor(images, tokenizer, max_length=table.max_length, text_prefix=table.prefix)


@pytest.mark.slow
def test_it_holds_no_text_encoder_and_reads_texts_with_the_table_s(
    table_model: Any, processor: Any, table: TableEncoder, tmp_path: Path
) -> None:
    assert not any(name.startswith("text.") for name in table_model.state_dict())
    tokens = processor(text=["red heart", "a dog"])
    assert torch.equal(
        tokens["input_ids"],
        processor.tokenizer(["a red heart", "a a dog"], padding=True, return_tensors="pt")["input_ids"],
    )
    features = table_model.text_features(**tokens)
    encoder = load_table_encoder(table, table_model.config.text_config)
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    torch.testing.assert_close(features, (hidden * mask).sum(1) / mask.sum(1))
    pixels = torch.randn(2, 3, 32, 32)
    live = table_model(pixel_values=pixels, **tokens).logits
    torch.testing.assert_close(table_model(pixel_values=pixels, text_features=features).logits, live)
    assert not any(name.startswith("text.") for name in table_model.state_dict()), "nor once it has read some"
    assert all(not parameter.requires_grad for parameter in encoder.parameters())
    table_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = FusionForImageTextClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert FusionProcessor.from_pretrained(tmp_path).text_prefix == "a "
    torch.testing.assert_close(loaded.eval()(pixel_values=pixels, **tokens).logits, live)
    loaded.train()(pixel_values=pixels, text_features=features, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, value in loaded.named_parameters() if value.grad is None] == []


def test_tables_that_are_not_the_model_s(table_model: Any, table: TableEncoder) -> None:
    check_same_table(table_model.config, table, "it")
    moved = TableEncoder.from_dict({**table.to_dict(), "source": "/elsewhere", "backbone": "/elsewhere"})
    check_same_table(table_model.config, moved, "it")
    for name, value in {"weights": "0" * 32, "pooling": "cls", "prefix": "", "max_length": 8}.items():
        other = TableEncoder.from_dict({**table.to_dict(), name: value})
        with pytest.raises(InputError, match=f"with {name} .*make one with mmhf embed --text") as raised:
            check_same_table(table_model.config, other, "it")
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_its_release_is_served_alike_without_mmhf(table_model: Any, processor: Any, tmp_path: Path) -> None:
    folder, image, texts = tmp_path / "release", tmp_path / "image.png", ["red heart", "a dog runs"]
    Image.effect_noise((20, 30), 50).convert("RGB").save(image)
    table_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert add_remote_code(folder)
    model = FusionForImageTextClassification.from_pretrained(folder)
    serve = ImageTextClassificationPipeline(model=model, processor=processor, task="image-text-classification")
    expected = serve([{"image": str(image), "text": text} for text in texts])
    python = make_clean_environment(tmp_path / "clean")
    command = [str(python), "-c", _SERVE, str(folder), str(image), *texts]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={"HF_HOME": str(tmp_path / "hf")}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [[each["label"] for each in row] for row in found] == [[each["label"] for each in row] for row in expected]
    scores = [[each["score"] for each in row] for row in found]
    torch.testing.assert_close(
        torch.tensor(scores), torch.tensor([[each["score"] for each in row] for row in expected])
    )
    assert abs(scores[0][0] - scores[1][0]) > 1e-4, "the texts count"
