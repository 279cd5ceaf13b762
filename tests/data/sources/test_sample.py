from __future__ import annotations

from collections import defaultdict

import pytest

from mmhf.data.loading import load_data
from mmhf.data.sources.sample import partner_of
from mmhf.sample_data import read_sample


@pytest.fixture(scope="module")
def data():
    from pydantic import TypeAdapter

    from mmhf.recipe.data_sections import DataSection

    return load_data(TypeAdapter(DataSection).validate_python({"source": "sample"}))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_neither_modality_alone_tells_anything(data, split):
    rows = data.splits[split]
    assert data.label_names == ["mismatched", "matched"]
    for column in (rows["text"], [image["bytes"] for image in rows["image"]]):
        by_value = defaultdict(list)
        for value, label in zip(column, rows["label"], strict=True):
            by_value[value].append(label)
        assert all(2 * sum(labels) == len(labels) for labels in by_value.values())


def test_each_drawing_comes_once_with_either_label(data):
    drawings = read_sample("test")
    rows = data.splits["test"]
    assert len(rows) == 2 * len(drawings)
    assert len(set(rows["id"])) == len(rows)
    captions = drawings.column("caption").to_pylist()
    groups = drawings.column("group").to_pylist()
    text_of = {row["row"]: row["text"] for row in rows if row["label"] == 1}
    assert all(text.startswith(captions[number - 1]) for number, text in text_of.items())
    home = {text: groups[number - 1] for number, text in text_of.items()}
    wrong = [row for row in rows if row["label"] == 0]
    assert all(row["text"] != text_of[row["row"]] and home[row["text"]] == groups[row["row"] - 1] for row in wrong)


def test_partners_are_of_the_same_group_and_rarely_of_the_same_subgroup():
    drawings = [
        {"group": "animals" if number < 20 else "food", "subgroup": str(number % 4), "hexcode": str(number)}
        for number in range(30)
    ]
    partners = partner_of(drawings, "seed")
    assert sorted(partners) == list(range(30))
    assert all(
        drawings[own]["group"] == drawings[other]["group"] and own != other for own, other in enumerate(partners)
    )
    alike = sum(drawings[own]["subgroup"] == drawings[other]["subgroup"] for own, other in enumerate(partners))
    assert alike < 30 / 4
    assert partners == partner_of(drawings, "seed") != partner_of(drawings, "other")


def test_evaluation_shows_the_other_artist_and_no_drawing_twice(data):
    vendors = {split: {name.split("-")[0] for name in data.splits[split]["id"]} for split in data.splits}
    assert vendors == {"train": {"noto"}, "validation": {"fluent"}, "test": {"fluent"}}
    names = [{name.rsplit("-", 1)[0] for name in data.splits[split]["id"]} for split in ("validation", "test")]
    assert not names[0] & names[1]
