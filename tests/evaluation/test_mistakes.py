import io

import numpy as np
from PIL import Image

from mmhf.evaluation.mistakes import mistake_examples, most_confident_mistakes


def encode(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, format="PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def test_the_surest_mistakes_come_first_with_their_row_in_the_split():
    logits = np.array([[9.0, 0.0], [0.0, 1.0], [0.0, 8.0], [3.0, 0.0], [0.0, 5.0]])
    labels = [-100, 0, 0, 0, 0]
    mistakes = most_confident_mistakes(logits, labels, 2)
    assert [(each.index, each.label, each.prediction) for each in mistakes] == [(2, 0, 1), (4, 0, 1), (1, 0, 1)]
    assert mistakes[0].confidence > mistakes[1].confidence > mistakes[2].confidence
    assert mistakes[2].confidence == 1 / (1 + np.exp(-1.0))
    assert most_confident_mistakes(logits, labels, 2, count=1) == mistakes[:1]


def test_equally_sure_mistakes_keep_the_order_of_the_rows():
    mistakes = most_confident_mistakes(np.tile([0.0, 2.0], (30, 1)), np.zeros(30, dtype=int), 2)
    assert [each.index for each in mistakes] == list(range(24))


def test_no_labelled_row_and_no_mistake_give_none():
    assert most_confident_mistakes(np.zeros((2, 2)), [-100, -100], 2) == []
    assert most_confident_mistakes(np.zeros((0, 2)), np.zeros(0, dtype=int), 2) == []
    assert most_confident_mistakes([[1.0, 0.0]], [0], 2) == []


def test_examples_carry_image_text_and_label_names():
    mistakes = most_confident_mistakes([[0.0, 3.0], [9.0, 0.0]], [0, 1], 2)
    rows = [
        {"id": "b", "image": encode("red"), "text": "second"},
        {"id": "a", "image": {"path": None, "bytes": b"no image"}, "text": "first"},
    ]
    surest, other = mistake_examples(mistakes, rows, ["fake", "true"])
    assert (surest.id, surest.text, surest.label, surest.prediction) == ("b", "second", "true", "fake")
    assert surest.image.getpixel((0, 0)) == (255, 0, 0)
    assert other.image is None
