"""Models that read columns of a table behind HTTP: the pipeline's answers, and what is refused."""

from __future__ import annotations

import base64
import json

import pytest

from mmhf import pipeline


@pytest.fixture
def client(serve, tiny_model):
    return serve({"m": tiny_model("fusion with columns")})


@pytest.fixture
def asked(encoded):
    def ask(**columns):
        return {"inputs": {"image": encoded, "text": "a frog", "columns": columns}}

    return ask


def test_a_server_answers_as_the_pipeline_does(client, tiny_model, picture, asked, encoded):
    classify = pipeline("image-text-classification", model=tiny_model("fusion with columns"))
    for columns in ({"age": 61, "site": "face"}, {"site": "back"}, {"age": "20.5", "site": "hand"}):
        answer = client.post("/v1/predict", json=asked(**columns))
        assert answer.status_code == 200, answer.text
        (prediction,) = answer.json()["predictions"]
        given = {"image": str(picture), "text": "a frog", "columns": columns}
        expected = {each["label"]: each["score"] for each in classify(given)}
        assert prediction["probabilities"] == pytest.approx(expected, abs=1e-6)
        unknown = "site: 'hand' is unknown to the model"
        assert prediction.get("note") == (unknown if columns["site"] == "hand" else None)
        files = {"image": base64.b64decode(encoded)}
        form = client.post("/v1/predict", files=files, data={"text": "a frog", "columns": json.dumps(columns)})
        assert form.json()["predictions"] == [prediction]


def test_models_say_which_columns_they_read(client):
    (card,) = client.get("/v1/models").json()["models"]
    assert card["columns"] == {"age": "number", "site": ["back", "face"]} and "columns" in card["reads"]
    body = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    (example,) = body["application/json"]["examples"].values()
    assert client.post("/v1/predict", json=example["value"]).status_code == 200


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"aeg": 1}, "inputs.0.columns.aeg: the model reads no such column; did you mean age? (it reads age, site)."),
        ({"age": "old"}, "inputs.0.columns.age: 'old' is no number."),
        ({"age": [1, 2]}, "inputs.0.columns.age: '[1, 2]' is no number."),
        ({"site": ["back"]}, "inputs.0.columns.site: expected one category, got a list."),
    ],
)
def test_other_columns_and_wrong_types_are_refused_in_one_line(columns, error, client, asked):
    answer = client.post("/v1/predict", json=asked(**columns))
    assert (answer.status_code, answer.json()["error"]) == (422, error)


def test_columns_are_asked_for_and_not_taken_by_others(client, serve, tiny_model, encoded):
    absent = client.post("/v1/predict", json={"inputs": {"image": encoded, "text": "a frog"}})
    assert (absent.status_code, absent.json()["error"]) == (
        422,
        "inputs.0.columns: is missing; the model reads image and text and columns.",
    )
    wrong = client.post("/v1/predict", json={"inputs": {"image": encoded, "text": "a", "columns": [1]}})
    assert wrong.status_code == 422 and "columns" in wrong.json()["error"]
    others = serve({"m": tiny_model("image classifier")})
    answer = others.post("/v1/predict", json={"inputs": {"image": encoded, "columns": {"age": 1}}})
    assert (answer.status_code, answer.json()["error"]) == (422, "inputs.0.columns: the model reads images alone.")
