"""Checkpoints of the dermatology program."""

from __future__ import annotations

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from seed_models import ClinicalClassifier, ClinicalVision, settle
from seed_texts import WORDS
from transformers import AutoModel, AutoTokenizer

from mmhf.cli import main
from mmhf.inference.loading import load_model

CLASSES = ["eczema", "naevus", "psoriasis"]


def save(path, name, pooling, distilbert, *, strategy="concat_mlp", hidden=(12, 8)):
    torch.manual_seed(0)
    vision = settle(ClinicalVision(name, pooling))
    with torch.no_grad():
        width = vision(torch.zeros(1, 3, 224, 224)).shape[1]
    classifier = ClinicalClassifier(width, 32, strategy, list(hidden)).eval()
    config = {
        "vision_model": {"name": name, "pretrained": True, "pooling_type": pooling},
        "multimodal_classifier": {"use_l2_normalization": True, "final_dropout": 0.3, "auxiliary_loss_weight": 0.2},
        "encoder": {"model_name": str(distilbert), "max_length": 32, "pooling_type": "cls"},
    }
    if pooling == "cls":
        del config["vision_model"]["pooling_type"]
    torch.save(
        {
            "epoch": 7,
            "config": config,
            "vision_model_state_dict": vision.state_dict(),
            "multimodal_classifier_state_dict": classifier.state_dict(),
            "classes": CLASSES,
        },
        path,
    )
    return vision, classifier


@torch.no_grad()
def embed(distilbert):
    tokens = AutoTokenizer.from_pretrained(distilbert)(WORDS, padding=True, return_tensors="pt")
    encoder = AutoModel.from_pretrained(distilbert).eval()
    return encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pooling", "options"),
    [
        ("resnet50", "concat", {"strategy": "weighted_sum", "hidden": []}),
        ("densenet121", "avg", {}),
        ("efficientnet_b1", "max", {}),
        ("vgg16", "avg", {"strategy": "weighted_sum"}),
        ("vit_b_32", "cls", {}),
    ],
)
def test_the_converted_model_has_the_seeds_logits(name, pooling, options, distilbert, tmp_path, convert):
    vision, classifier = save(tmp_path / "best_model.pth", name, pooling, distilbert, **options)
    changes = ["model.vision.pooling=cls"] if pooling == "cls" else []
    convert(tmp_path / "best_model.pth", "-o", tmp_path / "skin", *changes)
    model, processor = load_model(tmp_path / "skin")
    assert list(model.config.id2label.values()) == CLASSES
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        expected = classifier(vision(images), embed(distilbert))
        logits = model(pixel_values=images, **processor(text=WORDS)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_its_table_of_embeddings_comes_along(distilbert, tmp_path, convert, refused, write_images, capsys):
    vision, classifier = save(tmp_path / "best_model.pth", "resnet50", "avg", distilbert)
    embeddings = embed(distilbert)
    names = write_images(6)
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "text_desc", "label"])
        writer.writerows([name, WORDS[number % 3], CLASSES[number % 3]] for number, name in enumerate(names))
    rows = [embeddings[number % 3].tolist() for number in range(6)]
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "seed.parquet")
    arguments = [tmp_path / "best_model.pth", "-o", tmp_path / "skin", "--embeddings", tmp_path / "seed.parquet"]
    assert "has no column of texts; name the table that has them with --texts" in refused(*arguments)
    convert(*arguments, "--texts", tmp_path / "rows.csv")
    model, _ = load_model(tmp_path / "skin")
    assert model.text is None
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        logits = model(pixel_values=images, text_features=embeddings).logits
        torch.testing.assert_close(logits, classifier(vision(images), embeddings), atol=1e-5, rtol=1e-5)
    data = [f"data.path={tmp_path / 'rows.csv'}", "data.image_size=32", "data.split={validation: 0.2, test: 0.5}"]
    data += ["data.version=null", "data.image_root=null"]
    assert main(["evaluate", str(tmp_path / "skin"), *data, "--split", "test"]) == 0
    assert "accuracy" in capsys.readouterr().out
    predict = ["predict", str(tmp_path / "skin"), "--input", str(tmp_path / "rows.csv")]
    columns = ["--column", "image=filename", "--column", "text=text_desc"]
    assert main([*predict, "--output", str(tmp_path / "p.csv"), *columns]) == 0
