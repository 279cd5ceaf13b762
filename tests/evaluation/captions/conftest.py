from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

WORDS = ("a", "the", "man", "dog", "dogs", "child", "ball", "red", "running", "runs", "snow", "on", "two", "near")
RARE = ("t-shirt", "man's", "isn't", "5", "café", "(yellow)", "x-ray", "dogs'", "CANNOT", "U.S.", "10:30", "and/or")


@dataclass(frozen=True)
class CaptionedImages:
    """Captions as a captioner and five people might write them."""

    predictions: list[str]
    references: list[list[str]]


def random_caption(generator: random.Random) -> str:
    words = generator.choices(WORDS, weights=range(len(WORDS), 0, -1), k=generator.randint(0, 24))
    if generator.random() < 0.3:
        words.insert(generator.randint(0, len(words)), generator.choice(RARE))
    return " ".join(words).capitalize() + generator.choice(["", " .", ".", "!"])


@pytest.fixture(scope="session")
def thousand_images() -> CaptionedImages:
    """1,000 images with one to five references; some captions are empty or punctuation alone."""
    generator = random.Random(0)
    references = [
        [f"{generator.choice(WORDS)} {random_caption(generator)}" for _ in range(generator.randint(1, 5))]
        for _ in range(1000)
    ]
    predictions = [
        generator.choice(of_image) if generator.random() < 0.1 else random_caption(generator)
        for of_image in references
    ]
    return CaptionedImages(["", " . ", *predictions[2:]], references)
