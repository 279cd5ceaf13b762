"""The source `sample`: the embedded drawings, with names of their own or of others, captions, or questions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from mmhf.data.label_sets import LABELS_TYPE
from mmhf.data.numbers import as_lists
from mmhf.data.splits import split_positions
from mmhf.data.table import SPLITS, EmbeddedImages, Part, Reading, SourceTable, extra_column, make_rows
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionSampleSection
from mmhf.recipe.data_sections import SampleDataSection
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.target_sections import MultiLabelSection, OrdinalSection, RegressionSection, TargetSection
from mmhf.sample_data import SAMPLE_PATH, read_sample

LABELS = ("mismatched", "matched")
COLUMNS = ("votes", "rater")
"""Made-up columns of the pairs: how many of five votes say that they match, and who voted."""
DRAWING_COLUMNS = ("group", "subgroup", "vendor")
"""Columns of the drawings with captions: their Unicode group and subgroup, and whose they are."""
QUESTION_COLUMNS = ("question", "kind")
"""Further columns of the questions about drawings."""
_RATERS = {"careful": 0.7, "hasty": 0.55, "contrary": 0.3}
"""Who votes, and how often rightly."""
_NUM_VOTES = 5
_LACKS_VOTES, _LACKS_RATER = 0.1, 0.05
_KEYWORDS_PER_TEXT = 4
_NUM_ANSWERS = 10
"""To each question, as many as VQA has; they are the right ones, in turn."""
_MOODS = {
    "negative": ("face-concerned", "face-negative", "face-unwell"),
    "neutral": ("face-neutral-skeptical", "face-sleepy"),
    "positive": ("face-affection", "face-smiling", "face-tongue"),
}
_MOOD_OF = {subgroup: mood for mood, subgroups in _MOODS.items() for subgroup in subgroups}


def read_sample_drawings(section: SampleDataSection | CaptionSampleSection, reading: Reading) -> SourceTable:
    """Read the drawings with texts, groups or captions, as the task requires.

    - With texts, each drawing is paired with its own (matched) and with that of another drawing of its group
      (mismatched); each drawing and each text appears exactly once with either label, so that neither alone tells
      anything. Pairs have `COLUMNS`.
    - With labels alone, each drawing has its Unicode group, such as `food-drink`.
    - With `multi_label`, each has its keywords, and its name as its text.
    - With `regression`, each has the number of words in its name, and its keywords as its text.
    - With `ordinal`, each face has its mood, `negative`, `neutral` or `positive`, and its name as its text.
    - With captions, each drawing has its name and up to four others, and, if the section says so, its keywords; there
      are `DRAWING_COLUMNS`.
    - With questions, each drawing comes once with each of four: what comes to mind (its keywords), which group it is
      in, and whether it is in its own group and in another. Captions are the answers; there are also
      `QUESTION_COLUMNS`.

    Args:
        section (`SampleDataSection` or `CaptionSampleSection`):
            Which drawings, how they are cut, and whether a caption with keywords comes on top, or questions instead.
        reading (`Reading`):
            What the task reads.

    Returns:
        `SourceTable`: the row number is the drawing's row in the split, counted from 1.

    Raises:
        InputError: a column is asked for that there is not.
    """
    target = section.target
    captioned = section if isinstance(section, CaptionSampleSection) else None
    asks = captioned is not None and captioned.questions
    known: tuple[str, ...] = ()
    if not reading.label:
        known = (*DRAWING_COLUMNS, *QUESTION_COLUMNS) if asks else DRAWING_COLUMNS
    elif reading.text and target is None:
        known = COLUMNS
    for name in [*reading.extra_columns, *((target and target.columns_read()) or ())]:
        if name not in known:
            guess = did_you_mean(nearest_names(name, known)) if known else ""
            if name in QUESTION_COLUMNS and not reading.label:
                guess = "; data.questions: true gives it"
            has = f"has the columns {' and '.join(known)}" if known else "has no columns"
            raise InputError(
                f"column {name!r} is asked for, but data.source 'sample' {has}{guess or '; '}"
                f"{'' if guess else 'fakeddit, table, clinical and hub have those of their tables'}"
            )
    splits = _drawings_by_split(section)
    if target is not None:
        return _rows_to_learn(target, splits)
    rows: list[dict[str, Any]] = []
    groups = [drawing["group"] for drawings in splits.values() for drawing in drawings]
    for split, drawings in splits.items():
        if asks:
            of_split = _questions(drawings, groups)
        elif reading.text:
            of_split = _pairs(drawings, split)
        else:
            of_split = _drawings(drawings, keywords=captioned is not None and captioned.keywords)
        rows += [{**row, "split": split} for row in of_split]
    unread = ("captions",) if reading.label else ("label", "text")
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in unread}
    label_of = None
    if reading.label:
        names = LABELS if reading.text else sorted({row["label"] for row in rows})
        label_of = {name: name for name in names}
    return SourceTable(make_rows(columns), {None: Part(SAMPLE_PATH.name, EmbeddedImages())}, label_of)


def _drawings_by_split(section: SampleDataSection | CaptionSampleSection) -> dict[str, list[dict[str, Any]]]:
    """The drawings that are asked for, by split; cut before they are paired, so that no pair spans two splits."""
    drawings = [each for each in read_sample().to_pylist() if section.vendor in (None, each["vendor"])]
    if section.split is None:
        return {split: [each for each in drawings if each["split"] == split] for split in SPLITS}
    places = split_positions(section.split, [each["group"] for each in drawings])
    return {split: [drawings[place] for place in chosen] for split, chosen in places.items()}


def _rows_to_learn(target: TargetSection, splits: Mapping[str, Sequence[dict[str, Any]]]) -> SourceTable:
    """Each drawing with what else than a class can be learnt of it."""
    drawings = [
        (number, {**drawing, "split": split})
        for split, of_split in splits.items()
        for number, drawing in enumerate(of_split)
        if not isinstance(target, OrdinalSection) or drawing["subgroup"] in _MOOD_OF
    ]
    rows = [{**_row(number, drawing), "split": drawing["split"]} for number, drawing in drawings]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["text"] = [drawing["caption"] for _, drawing in drawings]
    if isinstance(target, MultiLabelSection):
        columns["labels"] = pa.array([drawing["keywords"] for _, drawing in drawings], LABELS_TYPE)
    elif isinstance(target, RegressionSection):
        columns["text"] = [" ".join(drawing["keywords"]) for _, drawing in drawings]
        columns["numbers"] = as_lists([pa.array([str(len(each["caption"].split())) for _, each in drawings])])
    else:
        columns["label"] = [_MOOD_OF[drawing["subgroup"]] for _, drawing in drawings]
    return SourceTable(make_rows(columns), {None: Part(SAMPLE_PATH.name, EmbeddedImages())})


def partner_of(drawings: list[dict[str, Any]], seed: str) -> list[int]:
    """Choose for each drawing another of the same group, each drawing chosen once.

    A group is put in an arbitrary fixed order and turned against itself, by the turn that puts fewest drawings beside
    one of their own subgroup: "man farmer" beside "farmer" would be a mismatch in name only.

    Args:
        drawings (`list[dict]`):
            With `group`, `subgroup` and `hexcode`.
        seed (`str`):
            Decides the order.

    Returns:
        `list[int]`: a position for each drawing; its own only in a group of one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, drawing in enumerate(drawings):
        groups[drawing["group"]].append(position)
    partners = list(range(len(drawings)))
    for members in groups.values():
        members.sort(key=lambda position: hashlib.sha256(f"{seed}{drawings[position]['hexcode']}".encode()).digest())
        kinds = [drawings[position]["subgroup"] for position in members]
        # How many would get a partner of their own kind, by how far each is from its partner.
        same = {
            turn: sum(kind == kinds[(place + turn) % len(kinds)] for place, kind in enumerate(kinds))
            for turn in range(1, len(members))
        }
        turn = min(same, key=same.__getitem__, default=0)
        for place, position in enumerate(members):
            partners[position] = members[(place + turn) % len(members)]
    return partners


def _pairs(drawings: list[dict[str, Any]], seed: str) -> Iterator[dict[str, Any]]:
    texts = [_text(drawing) for drawing in drawings]
    for number, partner in enumerate(partner_of(drawings, seed)):
        if number == partner:
            continue
        row = _row(number, drawings[number])
        for text_number, label in ((number, LABELS[1]), (partner, LABELS[0])):
            columns = _votes(f"{seed}{row['id']}{label}", is_match=label == LABELS[1])
            yield {**row, "id": f"{row['id']}-{label}", "text": texts[text_number], "label": label, **columns}


def _votes(seed: str, *, is_match: bool) -> dict[str, str | None]:
    """The made-up columns of a pair: the same for the same pair."""
    draws = [byte / 256 for byte in hashlib.sha256(seed.encode()).digest()]
    rater = list(_RATERS)[int(draws[0] * len(_RATERS))]
    says_match = [(draw < _RATERS[rater]) == is_match for draw in draws[1 : 1 + _NUM_VOTES]]
    votes = None if draws[-1] < _LACKS_VOTES else str(sum(says_match))
    return {
        extra_column("votes"): votes,
        extra_column("rater"): None if draws[-2] < _LACKS_RATER else rater,
    }


def _drawings(drawings: list[dict[str, Any]], *, keywords: bool) -> Iterator[dict[str, Any]]:
    for number, drawing in enumerate(drawings):
        captions = list(dict.fromkeys([*drawing["captions"], *([_text(drawing)] if keywords else [])]))
        columns = {extra_column(name): drawing[name] for name in DRAWING_COLUMNS}
        yield {**_row(number, drawing), "text": None, "label": drawing["group"], "captions": captions, **columns}


def _questions(drawings: list[dict[str, Any]], groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Four questions about each drawing; a group is asked about as often where it is wrong as where it is right, or
    nearly so, since the wrong one is that of any of the drawings in other `groups`."""
    others = {own: [group for group in groups if group != own] for own in set(groups)}
    for number, drawing in enumerate(drawings):
        row, own = _row(number, drawing), drawing["group"]
        draw = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8])
        other = others[own][draw % len(others[own])]
        asked = (
            ("keyword", "what comes to mind?", drawing["keywords"]),
            ("group", "which group is it in?", [_words(own)]),
            ("yes or no", f"is it in {_words(own)}?", ["yes"]),
            ("yes or no", f"is it in {_words(other)}?", ["no"]),
        )
        for place, (kind, question, right) in enumerate(asked, 1):
            values = {**{name: drawing[name] for name in DRAWING_COLUMNS}, "question": question, "kind": kind}
            yield {
                **row,
                "id": f"{row['id']}-{place}",
                "image_group": row["id"],
                "captions": [right[answer % len(right)] for answer in range(_NUM_ANSWERS)],
                **{extra_column(name): value for name, value in values.items()},
            }


def _words(group: str) -> str:
    return group.replace("-", " and ")


def _row(number: int, drawing: dict[str, Any]) -> dict[str, Any]:
    image = {"path": None, "bytes": drawing["image"]["bytes"]}
    return {"row": number + 1, "id": f"{drawing['vendor']}-{drawing['hexcode']}", "image": image}


def _text(drawing: dict[str, Any]) -> str:
    """The name and the first keywords that are not in it."""
    words = set(drawing["caption"].lower().split())
    new = [keyword for keyword in drawing["keywords"] if keyword not in words]
    return " ".join([drawing["caption"], *new[:_KEYWORDS_PER_TEXT]])


READERS = {SampleDataSection: read_sample_drawings, CaptionSampleSection: read_sample_drawings}
