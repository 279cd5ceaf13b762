from __future__ import annotations

import pytest
import torch
from open_clip import build_zero_shot_classifier
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor, nn

from mmhf.evaluation.retrieval import NAMED_TEMPLATES, fill_templates, templates_of, zero_shot_class_embeddings

THEIRS = {"imagenet80": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
NAMES = ["great white shark", "jay", "tench"]


class Letters(nn.Module):
    """Embeds a text by its letters; the length of an embedding is that of the text."""

    def encode_text(self, texts: Tensor, normalize: bool = False) -> Tensor:
        counts = torch.stack([(texts % 16 == letter).sum(dim=1).float() for letter in range(1, 16)], dim=1)
        return nn.functional.normalize(counts, dim=-1) if normalize else counts


def tokens(texts: list[str]) -> Tensor:
    return torch.tensor([[ord(letter) for letter in text.ljust(80)[:80]] for text in texts])


@pytest.mark.parametrize("name", ["imagenet80", "simple"])
def test_named_templates_and_their_average_are_open_clip_s(name: str) -> None:
    templates = templates_of(name)
    assert fill_templates("tench", templates) == [template("tench") for template in THEIRS[name]]
    model = Letters()
    ours = zero_shot_class_embeddings(lambda texts: model.encode_text(tokens(texts)), NAMES, templates)
    theirs = build_zero_shot_classifier(model, tokens, NAMES, THEIRS[name], num_classes_per_batch=2, use_tqdm=False)
    torch.testing.assert_close(ours, theirs.T)
    # CLIP's formula: the mean of normalised embeddings, normalised again.
    embeds = nn.functional.normalize(model.encode_text(tokens([each("tench") for each in THEIRS[name]])), dim=-1)
    torch.testing.assert_close(ours[2], nn.functional.normalize(embeds.mean(dim=0), dim=0))


def test_there_are_eighty_and_seven_and_others_stay_as_given() -> None:
    assert {name: len(set(templates)) for name, templates in NAMED_TEMPLATES.items()} == {
        "imagenet80": 80,
        "simple": 7,
    }
    assert templates_of(["a {}"]) == ["a {}"]
