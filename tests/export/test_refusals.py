"""An export that cannot be used is not written."""

from __future__ import annotations

import importlib.util
import json

import pandas as pd
import pytest
from torch import nn

from mmhf.cli import main
from mmhf.errors import InputError
from mmhf.export import formats, graphs
from mmhf.export.folder import export_model


@pytest.fixture
def classifier(tiny_models):
    return tiny_models["image classifier"]


@pytest.mark.slow
def test_a_graph_that_disagrees_leaves_no_folder(classifier, tmp_path, monkeypatch):
    write = formats.write_graph

    def write_another(graph, path, format):
        nn.init.normal_(graph.module.model.head[-1].bias, std=1e-2)
        write(graph, path, format)

    monkeypatch.setattr("mmhf.export.folder.write_graph", write_another)
    with pytest.raises(InputError, match="disagrees with the model by"):
        export_model(classifier, tmp_path / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_cannot_be_traced_is_told(classifier, tmp_path, monkeypatch):
    def depends_on_values(model, given):
        logits = model(**given).logits
        return (logits if float(logits.sum()) > 0 else -logits,)

    monkeypatch.setattr(graphs, "_logits", depends_on_values)
    with pytest.raises(InputError, match="model cannot be written as a graph"):
        export_model(classifier, tmp_path / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(classifier, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(classifier), "-o", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_missing_extra_is_named(classifier, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("mmhf.cli._checks.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert main(["export", str(classifier), "-o", str(tmp_path / "out")]) == 2
    assert "onnxruntime is not installed: pip install 'mmhf[export]'" in capsys.readouterr().err


def test_a_family_without_graphs_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="a bert model; expected mmhf_"):
        export_model(tmp_path, tmp_path / "out")


def test_steps_that_settings_do_not_know_are_refused(classifier, tmp_path):
    copied = tmp_path / "model"
    copied.mkdir()
    for path in classifier.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    file = copied / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_normalize": False}))
    with pytest.raises(InputError, match="do_normalize=false has no place"):
        export_model(copied, tmp_path / "out", format="torch")


@pytest.mark.slow
def test_own_rows_are_compared(tiny_models, photos, tmp_path):
    folder = tmp_path / "out"
    settings = export_model(tiny_models["image classifier"], folder, format="torch", input_path=photos)
    assert settings["agreement"]["of"] == str(photos)
    assert settings["agreement"]["rows"] == 4
    table = tmp_path / "rows.csv"
    pd.DataFrame({"image": ["wide.jpg"], "text": ["a frog"]}).to_csv(table, index=False)
    with pytest.raises(InputError, match="two rows with an image and a text are needed"):
        export_model(tiny_models["fusion"], tmp_path / "other", input_path=table)
