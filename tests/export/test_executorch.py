"""Image classifiers for phones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from mmhf.errors import InputError
from mmhf.export.folder import export_model
from mmhf.export.formats import FORMATS
from mmhf.inference.loading import load_model
from mmhf.models.encoders import timm_config
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig


def test_texts_are_not_for_phones(tiny_models, tmp_path):
    with pytest.raises(InputError, match="for models that read images alone"):
        export_model(tiny_models["fusion"], tmp_path / "out", format="executorch")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_mobilenet_answers_as_the_model(tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    side = {"height": 64, "width": 64}
    half = [0.5, 0.5, 0.5]
    vision = timm_config("mobilenetv3_small_050", {"input_size": [3, 64, 64], "mean": half, "std": half})
    config = BackboneForImageClassificationConfig(vision, id2label={0: "a", 1: "b"})
    BackboneForImageClassification(config).save_pretrained(tmp_path / "model")
    CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False).save_pretrained(tmp_path / "model")
    settings = export_model(tmp_path / "model", tmp_path / "out", format="executorch")
    assert settings == json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert settings["graphs"]["model"]["inputs"]["pixel_values"]["shape"] == [1, 3, 64, 64]
    assert settings["agreement"]["largest_difference"]["model"] <= 1e-4
    model, _ = load_model(tmp_path / "model", device=torch.device("cpu"))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(pixel_values=pixels).logits
    found = FORMATS["executorch"].load(tmp_path / "out" / "model.pte", ["logits"])({"pixel_values": pixels.numpy()})[
        "logits"
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
