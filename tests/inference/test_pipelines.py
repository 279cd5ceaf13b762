from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mmhf
from mmhf.data.images import BadImageError
from mmhf.errors import InputError
from mmhf.inference.pipelines import ImageTextClassificationPipeline
from mmhf.models.fusion import FusionForImageTextClassification, FusionProcessor


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> ImageTextClassificationPipeline:
    return mmhf.pipeline("image-text-classification", model=str(model_dir))


@pytest.fixture(scope="module")
def examples(images_dir: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"image": str(images_dir / row["image"]), "text": row["text"]} for row in rows]


def scores(results: list[list[dict]]) -> np.ndarray:
    """(N, 2) probabilities of `fake` and `true`."""
    by_label = [{entry["label"]: entry["score"] for entry in result} for result in results]
    return np.array([[result["fake"], result["true"]] for result in by_label])


def test_is_a_stock_pipeline(classifier, model_dir):
    assert isinstance(classifier, transformers.Pipeline)
    assert isinstance(classifier, ImageTextClassificationPipeline)
    assert type(mmhf.pipeline(str(model_dir))) is type(classifier), "a folder knows its task"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("image-text-clasification", "x"), "did you mean image-text-classification?"),
        (("releases/nothing@v1.8",), "releases/nothing"),
        (("image-text-classification", "outputs/nothing"), "outputs/nothing"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments, says):
    with pytest.raises(InputError) as raised:
        mmhf.pipeline(*arguments)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_an_image_by_itself(classifier):
    with pytest.raises(InputError, match="reads an image and a text"):
        classifier(Image.new("RGB", (8, 8)))
    with_text = classifier(Image.new("RGB", (8, 8)), text="a frog")
    assert {entry["label"] for entry in with_text} == {"fake", "true"}


def test_one_pair_equals_the_model(classifier, examples, expected):
    results = [classifier(example) for example in examples]
    np.testing.assert_allclose(scores(results), expected, rtol=0, atol=1e-6)
    for result, probabilities in zip(results, expected, strict=True):
        assert [entry["label"] for entry in result] == (
            ["fake", "true"] if probabilities[0] > 0.5 else ["true", "fake"]
        )
        assert result[0]["score"] >= result[1]["score"]


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_lists_and_batches_equal_single_calls(classifier, examples, expected, batch_size):
    results = classifier(examples, batch_size=batch_size)
    np.testing.assert_allclose(scores(results), expected, rtol=0, atol=1e-6)


def test_generators_stream(classifier, examples, expected):
    taken = []

    def generate():
        for example in examples:
            taken.append(example)
            yield example

    results = classifier(generate(), batch_size=4)
    first = next(iter(results))
    assert len(taken) < len(examples)
    np.testing.assert_allclose(scores([first]), expected[:1], rtol=0, atol=1e-6)


def test_keywords_and_every_kind_of_image(classifier, examples, expected):
    path, text = examples[3]["image"], examples[3]["text"]
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    kinds = [path, Path(path), Path(path).read_bytes(), image, {"path": path, "bytes": None}]
    results = [classifier(image=kind, text=text) for kind in kinds] + classifier(image=kinds, text=[text] * len(kinds))
    np.testing.assert_allclose(scores(results), np.tile(expected[3], (10, 1)), rtol=0, atol=1e-6)


def test_top_k(classifier, examples):
    full = classifier(examples[0])
    assert classifier(examples[0], top_k=1) == full[:1]
    assert classifier(examples[:2], top_k=5)[0] == full
    with pytest.raises(InputError, match="top_k=0"):
        classifier(examples[0], top_k=0)


def test_an_empty_list_and_an_empty_text(classifier, examples):
    assert classifier([]) == []
    assert len(classifier({**examples[0], "text": ""})) == 2


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        ({"text": "frog"}, {}, "image is missing"),
        ({"image": "x.png"}, {}, "text is missing"),
        ({"image": "x.png", "text": None}, {}, "text is missing"),
        ({"image": "x.png", "text": 3}, {}, "expected a string"),
        (None, {"image": "x.png"}, "both image= and text="),
        (None, {"image": ["x.png"], "text": ["a", "b"]}, "1 images for 2 texts"),
        (None, {"image": ["x.png"], "text": "a"}, "both be single"),
        ([], {"text": "a"}, "not both"),
    ],
)
def test_bad_inputs_are_named(classifier, inputs, keywords, message):
    with pytest.raises(InputError, match=message):
        classifier(inputs, **keywords)


def test_a_missing_image_is_named(classifier):
    with pytest.raises(BadImageError, match="missing"):
        classifier(image="absent.png", text="frog")


def test_a_model_in_training_mode_is_served_in_eval_mode(model_dir, examples, expected):
    model = FusionForImageTextClassification.from_pretrained(model_dir).train()
    processor = FusionProcessor.from_pretrained(model_dir)
    served = mmhf.pipeline("image-text-classification", model=model, processor=processor)
    np.testing.assert_allclose(scores(served(examples)), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="processor"):
        ImageTextClassificationPipeline(model=model)


def test_bf16_weights_stay_bf16(model_dir, examples, expected):
    served = mmhf.pipeline("image-text-classification", model=str(model_dir), dtype=torch.bfloat16)
    assert served.model.dtype == torch.bfloat16
    np.testing.assert_allclose(scores(served(examples, batch_size=4)), expected, rtol=0, atol=0.1)
