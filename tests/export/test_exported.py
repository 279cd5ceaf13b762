"""What is exported answers as the model does, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from mmhf.export.folder import export_model
from mmhf.inference import JobSettings, pipeline, predict_table
from mmhf.inference.loading import load_model

# Pillow rounds a resized pixel to a neighbouring value of 255 now and then.
ROUNDING = 1e-2


def settings_of(folder):
    return json.loads((folder / "settings.json").read_text(encoding="utf-8"))


def predicted(model, photos, output, **options):
    predict_table(model, photos, output, JobSettings(device="cpu"), **options)
    table = pd.read_parquet(output)
    return table.set_index(table["file_name"].map(lambda name: Path(name).name))


@pytest.mark.slow
def test_an_image_classifier_answers_as_predict(exported, tiny_models, photos, program, tmp_path):
    rows = predicted(tiny_models["image classifier"], photos, tmp_path / "rows.parquet")
    classify = program(exported("image classifier"))["classify"]
    for name, row in rows.iterrows():
        answer = classify(photos / name)
        assert answer["label"] == row["label"], name
        for label in ("fake", "true"):
            assert answer["probabilities"][label] == pytest.approx(row[f"probability_{label}"], abs=ROUNDING), name


@pytest.mark.slow
def test_a_program_needs_neither_torch_nor_mmhf(exported, photos, run_alone, program):
    folder = exported("fusion")
    answer = json.loads(run_alone(folder, photos / "wide.jpg", "a red frog"))
    assert answer == program(folder)["classify"](photos / "wide.jpg", "a red frog")


@pytest.mark.slow
def test_a_fusion_model_answers_as_predict(exported, tiny_models, photos, program, tmp_path):
    texts = {"high.png": "a red frog", "grey.png": "lamp on a shield sitting on a frog of a photo of a lamp on a lamp"}
    table = tmp_path / "rows.csv"
    pd.DataFrame({"image": list(texts), "text": list(texts.values())}).to_csv(table, index=False)
    output = tmp_path / "predicted.parquet"
    predict_table(tiny_models["fusion"], table, output, JobSettings(device="cpu", image_root=photos))
    classify = program(exported("fusion"))["classify"]
    for row in pd.read_parquet(output).to_dict("records"):
        answer = classify(photos / row["image"], row["text"])
        assert answer["label"] == row["label"]
        assert answer["confidence"] == pytest.approx(row["confidence"], abs=ROUNDING)


@pytest.mark.slow
def test_a_dual_encoder_matches_as_zero_shot(exported, tiny_models, photos, program):
    labels = ["a red frog", "lamp", "a photo of a shield"]
    answer = program(exported("dual encoder"))["match"](photos / "wide.jpg", labels)
    asked = pipeline("zero-shot-image-classification", model=str(tiny_models["dual encoder"]), device="cpu")
    options = {"candidate_labels": labels, "hypothesis_template": "{}"}
    wanted = {each["label"]: each["score"] for each in asked(str(photos / "wide.jpg"), **options)}
    assert answer == pytest.approx(wanted, abs=5 * ROUNDING)


@pytest.mark.slow
def test_a_captioner_writes_as_predict(exported, tiny_models, photos, program, tmp_path):
    rows = predicted(tiny_models["captioner"], photos, tmp_path / "rows.parquet", generation={"num_beams": 1})
    caption = program(exported("captioner"))["caption"]
    answers = {name: caption(photos / name) for name in rows.index}
    assert answers == {name: rows["caption"].fillna("")[name] for name in answers}
    assert any(answers.values())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.slow
def test_graphs_take_batches_and_texts_of_any_length(exported, tiny_models, batch):
    model, _ = load_model(tiny_models["fusion"], device=torch.device("cpu"))
    session = onnxruntime.InferenceSession(exported("fusion") / "model.onnx")
    for length in (1, 2, 9):
        pixels = torch.randn(batch, 3, 32, 32)
        ids = torch.randint(4, 14, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, 1:] = 0
        inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            wanted = model(**inputs).logits
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_each_tower_of_a_dual_encoder_has_its_own_weights_alone(exported):
    import onnx

    tensors = {
        name: {each.name for each in onnx.load(exported("dual encoder") / f"{name}.onnx").graph.initializer}
        for name in ("image", "text")
    }
    assert not any("text" in name for name in tensors["image"])
    assert not any("vision" in name for name in tensors["text"])


@pytest.mark.slow
def test_settings_say_what_is_done_before_and_behind(exported, tiny_models):
    settings = settings_of(exported("fusion"))
    assert settings["labels"] == ["fake", "true"]
    assert settings["image"]["resize"] == {"height": 32, "width": 32}
    assert settings["graphs"]["model"]["inputs"]["input_ids"] == {"shape": ["batch", "length"], "dtype": "int64"}
    assert settings["agreement"]["largest_difference"]["model"] <= 1e-4
    embeds = settings_of(exported("dual encoder"))
    assert embeds["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    assert settings_of(exported("captioner"))["generation"]["end_ids"] == [3]


@pytest.mark.slow
def test_torch_files_run_without_mmhf(tiny_models, tmp_path):
    folder = tmp_path / "torch"
    settings = export_model(tiny_models["image classifier"], folder, format="torch")
    model, _ = load_model(tiny_models["image classifier"], device=torch.device("cpu"))
    module = torch.export.load(folder / settings["graphs"]["model"]["file"]).module()
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(module(pixels)[0], model(pixel_values=pixels).logits)
    assert not (folder / "run_onnx.py").exists()
