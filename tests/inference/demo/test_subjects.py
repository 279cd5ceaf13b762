from __future__ import annotations

import numpy as np
import pytest
import torch

import mmhf
from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference.demo.explaining import image_relevance
from mmhf.inference.demo.subjects import load_subject, named_classes

CPU = torch.device("cpu")
POOL = ["a red frog", "a lamp", "weapon on a shield", "sitting", "a lamp", "frog on a lamp", "a photo of a shield"]


@pytest.fixture
def subject(tiny_model):
    return lambda family: load_subject(tiny_model(family), captions=POOL, device=CPU)


@pytest.fixture
def image(picture):
    return decode_image(picture)


def by_label(result: list[dict]) -> dict[str, float]:
    return {entry["label"]: pytest.approx(entry["score"], abs=1e-6) for entry in result}


def test_a_fusion_classifier_answers_as_its_pipeline(subject, tiny_model, image):
    served = mmhf.pipeline("image-text-classification", model=str(tiny_model("fusion")))
    for text in ("a red frog", "weapon on a shield", ""):
        answer = subject("fusion").answer(image, text)
        assert answer.probabilities == by_label(served({"image": image, "text": text}))
        assert answer.label == served({"image": image, "text": text})[0]["label"]


def test_an_image_classifier_answers_as_its_pipeline(subject, tiny_model, image):
    served = mmhf.pipeline("image-classification", model=str(tiny_model("image classifier")))
    assert subject("image classifier").answer(image, "").probabilities == by_label(served(image))


def test_a_captioner_answers_as_its_pipeline(subject, tiny_model, image):
    served = mmhf.pipeline("image-captioning", model=str(tiny_model("captioner")))
    caption = served(image)[0]["caption"]
    assert caption
    assert subject("captioner").answer(image, "").caption == caption
    assert subject("captioner").explain(image, "") is None


def test_a_dual_encoder_classifies_as_its_pipeline(subject, tiny_model, image):
    served = mmhf.pipeline("zero-shot-image-classification", model=str(tiny_model("dual encoder")))
    expected = served(image, candidate_labels=["frog", "lamp", "red shield"], hypothesis_template="a photo of a {}.")
    answer = subject("dual encoder").answer(image, "frog, lamp\n red shield ,,")
    assert answer.probabilities == by_label(expected)


def test_the_nearest_captions_are_those_of_largest_cosine(subject, image):
    dual_encoder = subject("dual encoder")
    nearest = dual_encoder.answer(image, "").nearest
    model, processor = dual_encoder.model, dual_encoder.processor
    with torch.no_grad():
        cosines = {
            caption: torch.cosine_similarity(
                model.get_image_features(**processor(images=[image])).pooler_output,
                model.get_text_features(**processor(text=[caption])).pooler_output,
            ).item()
            for caption in POOL
        }
    expected = sorted(cosines.items(), key=lambda pair: -pair[1])[:5]
    assert [caption for caption, _ in nearest] == [caption for caption, _ in expected]
    assert [cosine for _, cosine in nearest] == pytest.approx([cosine for _, cosine in expected], abs=1e-5)


@pytest.mark.slow
def test_words_fall_as_the_pipeline_says(subject, tiny_model, image):
    """Encoding the image once gives what whole passes through the pipeline give."""
    served = mmhf.pipeline("image-text-classification", model=str(tiny_model("fusion")))
    whole = served({"image": image, "text": "red frog lamp"})[0]
    falls = []
    for left in ("frog lamp", "red lamp", "red frog"):
        scores = {entry["label"]: entry["score"] for entry in served({"image": image, "text": left})}
        falls.append(whole["score"] - scores[whole["label"]])
    words = subject("fusion").explain(image, "red frog lamp").words
    largest = max(abs(fall) for fall in falls)
    assert words == [
        (word, pytest.approx(fall / largest, abs=1e-4))
        for word, fall in zip(("red", "frog", "lamp"), falls, strict=True)
    ]


@pytest.mark.parametrize("family", ["fusion", "image classifier"])
@pytest.mark.slow
def test_the_heat_map_is_that_of_whole_passes(subject, image, family, monkeypatch):
    """Encoding the text once gives what whole passes through the model give."""
    classifier = subject(family)
    seen = []

    def record(score, pixel_values):
        seen.append((image_relevance(score, pixel_values), pixel_values))
        return seen[-1][0]

    monkeypatch.setattr("mmhf.inference.demo.subjects.image_relevance", record)
    explanation = classifier.explain(image, "a red frog")
    assert explanation.image.size == (384, 384)
    relevance, pixel_values = seen[0]
    target = classifier.names.index(classifier.answer(image, "a red frog").label)
    encoding = classifier.processor(text=["a red frog"]) if family == "fusion" else {}

    def whole(pixels: torch.Tensor) -> torch.Tensor:
        rows = {name: tensor.expand(len(pixels), -1) for name, tensor in encoding.items()}
        return classifier.model(pixel_values=pixels, **rows).logits.double().softmax(-1)[:, target]

    np.testing.assert_allclose(relevance, image_relevance(whole, pixel_values), atol=1e-6)
    assert np.abs(relevance).max() > 1e-3


def test_a_dual_encoder_explains_the_class_it_chose_and_nothing_without_classes(subject, image):
    assert subject("dual encoder").explain(image, " , ") is None
    assert subject("dual encoder").explain(image, "frog, lamp").image.size == (384, 384)


@pytest.mark.parametrize(
    ("text", "names"),
    [("", []), (" , \n,", []), ("a cat", ["a cat"]), ("cat, dog\ncat\n the  bird ", ["cat", "dog", "the  bird"])],
)
def test_classes_are_read_out_of_a_text(text, names):
    assert named_classes(text) == names


def test_columns_are_asked_for_and_count(subject, tiny_model, image):
    served = mmhf.pipeline("image-text-classification", model=str(tiny_model("fusion with columns")))
    asked, answers = subject("fusion with columns"), []
    assert asked.columns["age"] == "number" and "face" in asked.columns["site"]
    for columns in ({"age": "61", "site": "face"}, {"age": "", "site": ""}, {}):
        found = asked.answer(image, "a frog", columns).probabilities
        assert found == by_label(served({"image": image, "text": "a frog", "columns": columns}))
        answers.append(found)
    assert answers[0] != answers[1] == answers[2]
    with pytest.raises(InputError, match="columns.age: 'old' is no number"):
        asked.answer(image, "a frog", {"age": "old"})
    assert asked.explain(image, "a frog", {"age": "61"}).image.size == (384, 384)
    captioner = subject("captioner with prompt")
    served = mmhf.pipeline("image-captioning", model=str(tiny_model("captioner with prompt")))
    assert captioner.columns == {"kind": "text"}
    one = served({"image": image, "columns": {"kind": "the frog"}})[0]["caption"]
    assert captioner.answer(image, "", {"kind": "the frog"}).caption == one


def test_what_cannot_be_loaded_is_refused(tiny_model, tmp_path):
    with pytest.raises(InputError, match="config.json is missing"):
        load_subject(tmp_path, captions=POOL)
    with pytest.raises(InputError, match="captions: there is none"):
        load_subject(tiny_model("dual encoder"), captions=[])
