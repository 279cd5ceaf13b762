"""Answers to questions about images: their normal form, exact match, and VQA accuracy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_ANSWERS = 4
"""With fewer answers to a question, no answer reaches a VQA accuracy of 1."""
_ENOUGH = 3
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_AND_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_CONTRACTIONS = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
    """,
)


# Each contraction without one of its apostrophes.
_APOSTROPHES = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS for at, letter in enumerate(word) if letter == "'"
}
_APOSTROPHES["somebody'd"] = "somebodyd"  # as the official evaluation has it


def normal_answer(text: str) -> str:
    """An answer in the form in which the VQA evaluation compares it.

    Lower case, number words up to ten as digits, no articles, no punctuation but apostrophes, colons and points before
    digits, and contractions with their apostrophes: https://visualqa.org/evaluation.html.
    """
    text = given = text.replace("\n", " ").replace("\t", " ").strip()
    has_comma = _DIGITS_AND_COMMA.search(given) is not None
    for mark in _PUNCTUATION:
        is_apart = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if is_apart or has_comma else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def most_frequent_answer(answers: Iterable[str]) -> str:
    """The answer that is given most often, compared in its normal form; the earliest of several, as it is written.

    Raises:
        ValueError: There is no answer.
    """
    counts: Counter[str] = Counter()
    written: dict[str, str] = {}
    for text, count in Counter(answers).items():
        normal = normal_answer(text)
        counts[normal] += count
        written.setdefault(normal, text)
    return written[max(counts, key=counts.__getitem__)]


def exact_matches(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """(N,): 1 where a prediction is one of its references, all in their normal form, else 0."""
    pairs = zip(predictions, references, strict=True)
    return np.array([normal_answer(text) in set(map(normal_answer, known)) for text, known in pairs], np.float64)


def vqa_accuracies(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """(N,): the VQA accuracy of each prediction, as in Antol et al., 2015.

    For each person in turn, whose answer is left out: how many of the others gave this answer, a third each, 1 at
    most. That is averaged over the persons.
    """
    scores = []
    for text, known in zip(predictions, references, strict=True):
        count = Counter(map(normal_answer, known))[normal_answer(text)]
        # Those who gave this answer are left out in `count` turns, and others in the rest.
        turns = [(count, count - 1), (len(known) - count, count)]
        scores.append(sum(times * min(others / _ENOUGH, 1.0) for times, others in turns if times) / len(known))
    return np.array(scores, np.float64)
