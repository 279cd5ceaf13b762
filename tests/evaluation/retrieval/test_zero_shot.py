import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as clip_benchmark
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from mmhf.errors import InputError
from mmhf.evaluation.retrieval import (
    ZERO_SHOT_PROTOCOLS,
    fill_templates,
    zero_shot_class_embeddings,
    zero_shot_metrics,
)

TEMPLATES = ["a photo of a {c}.", "a {c}, drawn", "many {c}s: {c}!"]
NAMES = ["cat", "dog", "{odd}", "red panda", "fox", "owl", "bee"]


class HashedTexts:
    """Embeds a text by its letters, as a model of CLIP_benchmark and as a function."""

    def encode_text(self, texts):
        counts = torch.zeros(len(texts), 24)
        for row, text in enumerate(texts):
            for letter in text:
                counts[row, ord(letter) % 24] += 1
        return counts - 1.3

    __call__ = encode_text


class Prompts(list):
    def to(self, device):
        return self


def test_classes_are_those_of_clip_benchmark():
    names = [name for name in NAMES if "{" not in name]
    ours = zero_shot_class_embeddings(HashedTexts(), names, TEMPLATES, batch_size=4)
    theirs = clip_benchmark.zero_shot_classifier(HashedTexts(), Prompts, names, TEMPLATES, "cpu", amp=False)
    assert torch.allclose(ours, theirs.T, atol=1e-6)


def test_each_class_can_have_prompts_of_its_own():
    prompts = {"cat": ["a cat with stripes", "a cat at night"], "dog": ["a dog"]}
    ours = zero_shot_class_embeddings(HashedTexts(), ["cat", "dog"], prompts)
    theirs = clip_benchmark.zero_shot_classifier(HashedTexts(), Prompts, ["cat", "dog"], prompts, "cpu", amp=False)
    assert torch.allclose(ours, theirs.T, atol=1e-6)


def test_names_stand_in_every_place_and_are_not_read_as_templates():
    assert fill_templates("{odd}", ["a {}, {c}"]) == ["a {odd}, {odd}"]


def test_accuracies_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    classes = torch.nn.functional.normalize(torch.randn(7, 12, generator=generator), dim=-1)
    labels = torch.randint(0, 6, (200,), generator=generator)
    images = classes[labels] + 0.45 * torch.randn(200, 12, generator=generator)
    ours = zero_shot_metrics(images, classes, labels)
    cosines = torch.nn.functional.normalize(images, dim=-1) @ classes.T
    at_1 = accuracy_score(labels, cosines.argmax(dim=1))
    at_5 = top_k_accuracy_score(labels, cosines, k=5, labels=range(7))
    expected = {
        "zero_shot_accuracy": at_1,
        "zero_shot_accuracy@5": at_5,
        "zero_shot_mean_per_class_recall": balanced_accuracy_score(labels, cosines.argmax(dim=1)),
    }
    assert 0.3 < at_1 < at_5 < 1
    assert ours == pytest.approx(expected, abs=1e-6) and ours.keys() == ZERO_SHOT_PROTOCOLS.keys()


def test_rows_without_a_label_are_left_out():
    classes, images = torch.eye(3), torch.eye(3)
    assert zero_shot_metrics(images.numpy(), classes, np.array([0, -100, 1]))["zero_shot_accuracy"] == 0.5
    with pytest.raises(InputError, match="no row has a label"):
        zero_shot_metrics(images, classes, [-100, -100, -100])
    with pytest.raises(ValueError, match="3 classes"):
        zero_shot_metrics(images, classes, [0, 1, 3])


@pytest.mark.parametrize("templates", [["a photo"], [], {"dog": ["a dog"]}])
def test_a_class_without_a_prompt_is_refused(templates):
    with pytest.raises(InputError, match="templates: "):
        zero_shot_class_embeddings(HashedTexts(), ["cat"], templates)
