"""What captions score that were made without a captioner, to stand beside its numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmhf.evaluation.captions.answers import most_frequent_answer

MAX_CANDIDATES = 2000
"""Captions that `best_constant_caption` tries on all images."""
_MAX_TOKENS = 64
_BLOCK_ROWS = 1024

_Positions = tuple[NDArray[np.int64], NDArray[np.uint64]]


def best_constant_caption(references: Sequence[Sequence[str]], *, max_candidates: int = MAX_CANDIDATES) -> str:
    """The caption of the data that, given for every image, has the highest ROUGE-L by rouge-score.

    Of more candidates than `max_candidates` those whose words the other captions share most are tried. Captions
    count up to their 64th word.

    Args:
        references (`Sequence[Sequence[str]]`): At least one caption an image; take the training split's for a baseline
            that knows nothing of the evaluated one.
        max_candidates (`int`, *optional*, defaults to 2000): How many distinct captions to try on all images.

    Raises:
        ValueError: There is no caption, or an image without one.
    """
    from rouge_score.tokenizers import DefaultTokenizer  # here, because it brings nltk

    if not references or not all(references):
        raise ValueError("the best constant caption needs images, each with a caption")
    texts = [text for of_image in references for text in of_image]
    tokenizer = DefaultTokenizer()
    words = {text: tokenizer.tokenize(text)[:_MAX_TOKENS] for text in dict.fromkeys(texts)}
    lengths = np.array([len(words[text]) for text in texts])
    starts = np.cumsum([0, *(len(of_image) for of_image in references[:-1])])
    positions = _word_positions([words[text] for text in texts])

    def score(text: str) -> float:
        common = _common_subsequence_lengths(words[text], positions, len(texts))
        f1 = 2 * common / np.maximum(1, lengths + len(words[text]))
        return float(np.maximum.reduceat(f1, starts).mean())

    return max(_most_shared(words, texts, max_candidates), key=score)


def nearest_neighbour_captions(
    features_train: ArrayLike, captions_train: Sequence[Sequence[str] | str], features: ArrayLike
) -> list[str]:
    """The caption of the training image whose features are most alike, by cosine.

    As in Devlin et al., 2015, https://arxiv.org/abs/1505.04467, with one neighbour.

    Args:
        features_train (`ArrayLike` of shape `(M, D)`): One row a training image, such as a frozen encoder's features.
        captions_train (`Sequence[Sequence[str] | str]`): Captions of the M images; the first of several is taken.
        features (`ArrayLike` of shape `(N, D)`): Of the images to caption.

    Returns:
        `list[str]`: N captions.

    Raises:
        ValueError: The shapes disagree, or there is no training image.
    """
    known, asked = _unit_rows(features_train), _unit_rows(features)
    if not len(known) or len(known) != len(captions_train) or known.shape[1] != asked.shape[1]:
        raise ValueError(
            f"expected features (M, D) of {len(captions_train)} captioned images and (N, D), got {known.shape} and "
            f"{asked.shape}"
        )
    firsts = [each if isinstance(each, str) else each[0] for each in captions_train]
    return [
        firsts[nearest]
        for start in range(0, len(asked), _BLOCK_ROWS)
        for nearest in (asked[start : start + _BLOCK_ROWS] @ known.T).argmax(axis=1)
    ]


def frequent_answers(
    questions_train: Sequence[str], answers_train: Sequence[Sequence[str]], questions: Sequence[str]
) -> list[str]:
    """The answer that the training data gives most often to the same question; to a new one, to any question.

    As in Antol et al., 2015, https://arxiv.org/abs/1505.00468, per question instead of per kind of question.

    Args:
        questions_train (`Sequence[str]`): Of the M training rows.
        answers_train (`Sequence[Sequence[str]]`): The answers to each.
        questions (`Sequence[str]`): The N questions to answer.
    """
    answer_of = {
        question: most_frequent_answer(text for row in rows for text in answers_train[row])
        for question, rows in _rows_of_questions(questions_train, questions).items()
    }
    return [answer_of[question if question in answer_of else None] for question in questions]


def nearest_answers(
    features_train: ArrayLike,
    questions_train: Sequence[str],
    answers_train: Sequence[Sequence[str]],
    features: ArrayLike,
    questions: Sequence[str],
) -> list[str]:
    """The most frequent answer to the same question about the training image that is most alike, by cosine.

    Of training images about which the question was asked; a new question is answered with what was said of the most
    similar one, whatever was asked.

    Args:
        features_train (`ArrayLike` of shape `(M, D)`): One row a training row.
        questions_train, answers_train, questions: As of `frequent_answers`.
        features (`ArrayLike` of shape `(N, D)`): Of the images that are asked about.
    """
    known, images = np.asarray(features_train), np.asarray(features)
    usual = [most_frequent_answer(each) for each in answers_train]
    rows_of = _rows_of_questions(questions_train, questions)
    places_of: dict[str | None, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        places_of[question if question in rows_of else None].append(place)
    answers = [""] * len(questions)
    for key, places in places_of.items():
        rows = rows_of[key]
        found = nearest_neighbour_captions(known[rows], [usual[row] for row in rows], images[places])
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return answers


def _rows_of_questions(questions_train: Sequence[str], asked: Iterable[str]) -> dict[str | None, list[int]]:
    """The training rows of each question that is asked, and, where one of them is new, of None: all."""
    wanted, found = set(asked), defaultdict[str | None, list[int]](list)
    for row, question in enumerate(questions_train):
        if question in wanted:
            found[question].append(row)
    if wanted - found.keys():
        found[None] = list(range(len(questions_train)))
    return dict(found)


def _unit_rows(features: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(features, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"expected features of shape (rows, D), got {rows.shape}")
    unit: NDArray[np.float32] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    return unit


def _most_shared(words: Mapping[str, Sequence[str]], texts: Sequence[str], count: int) -> list[str]:
    """Distinct texts by how many texts have their words, for their length, most first."""
    if len(words) <= count:
        return list(words)
    shared_by = Counter(word for text in texts for word in set(words[text]))
    usual = sum(len(words[text]) for text in texts) / len(texts)

    def share(text: str) -> float:
        return sum(shared_by[word] for word in set(words[text])) / (len(words[text]) + usual)

    return sorted(words, key=share, reverse=True)[:count]


def _word_positions(texts: Sequence[Sequence[str]]) -> dict[str, _Positions]:
    """Word -> the texts that have it, and in each a bit for every position at which it stands."""
    bits: dict[str, dict[int, int]] = {}
    for number, words in enumerate(texts):
        for at, word in enumerate(words):
            of_word = bits.setdefault(word, {})
            of_word[number] = of_word.get(number, 0) | 1 << at
    return {
        word: (np.array(list(of_word), dtype=np.int64), np.array(list(of_word.values()), dtype=np.uint64))
        for word, of_word in bits.items()
    }


def _common_subsequence_lengths(
    words: Sequence[str], positions: Mapping[str, _Positions], num_texts: int
) -> NDArray[np.int64]:
    """Lengths of the longest common subsequence with all texts at once; see `rouge.common_subsequence_length`."""
    unmatched = np.full(num_texts, ~np.uint64(0))
    for word in words:
        numbers, bits = positions[word]
        before = unmatched[numbers]
        matches = before & bits
        unmatched[numbers] = (before + matches) | (before - matches)
    return _MAX_TOKENS - np.bitwise_count(unmatched).astype(np.int64)
