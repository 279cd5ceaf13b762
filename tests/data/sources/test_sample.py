from __future__ import annotations

from collections import defaultdict

import pytest
from pydantic import TypeAdapter, ValidationError

from mmhf.data.loading import load_data
from mmhf.data.sources.sample import partner_of
from mmhf.errors import InputError
from mmhf.recipe.data_sources import DataSection
from mmhf.sample_data import read_sample


@pytest.fixture(scope="module")
def data():
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


def test_pairs_have_made_up_columns_that_tell_something_and_are_always_the_same(data):
    columns = TypeAdapter(DataSection).validate_python({"source": "sample"})
    rows = load_data(columns, extra_columns=["votes", "rater"]).splits["test"]
    assert rows["label"] == data.splits["test"]["label"]
    votes, raters = rows["extra.votes"], rows["extra.rater"]
    assert set(raters) == {"careful", "hasty", "contrary", None}
    assert {each for each in votes if each is not None} == set(map(str, range(6)))
    assert 0.05 < sum(each is None for each in votes) / len(rows) < 0.15
    right = defaultdict(list)
    for rater, number, label in zip(raters, votes, rows["label"], strict=True):
        if rater is not None and number is not None:
            right[rater].append((int(number) > 2) == bool(label))
    shares = {rater: sum(each) / len(each) for rater, each in right.items()}
    assert shares["careful"] > 0.75 and shares["contrary"] < 0.25 < shares["hasty"]
    again = load_data(columns, extra_columns=["votes"], splits=["test"]).splits["test"]
    assert again["extra.votes"] == votes


@pytest.mark.parametrize(
    ("target", "drawings"),
    [
        ({}, 1396),
        ({"ordinal": {"order": ["negative", "neutral", "positive"]}}, 86),
        ({"multi_label": {"names": ["face", "animal"], "others": "ignore"}}, 1396),
    ],
)
def test_the_drawings_of_one_artist_are_cut_anew(target, drawings):
    values = {"source": "sample", "vendor": "fluent", "split": {"validation": 0.2, "test": 0.3}, **target}
    splits = load_data(TypeAdapter(DataSection).validate_python(values), task="image-classification").splits
    ids = [name for rows in splits.values() for name in rows["id"]]
    assert len(set(ids)) == len(ids) == drawings
    assert {name.split("-")[0] for name in ids} == {"fluent"}
    assert len(splits["validation"]) / drawings == pytest.approx(0.2, abs=0.05)
    assert len(splits["test"]) / drawings == pytest.approx(0.3, abs=0.05)


def test_pairs_of_drawings_that_are_cut_anew_are_within_a_split():
    values = {"source": "sample", "vendor": "noto", "split": {"validation": 0, "test": 0.5}}
    splits = load_data(TypeAdapter(DataSection).validate_python(values)).splits
    assert set(splits) == {"train", "test"}
    assert not set(splits["train"]["text"]) & set(splits["test"]["text"])
    for rows in splits.values():
        for column in (rows["text"], [name.rsplit("-", 1)[0] for name in rows["id"]]):
            by_value = defaultdict(list)
            for value, label in zip(column, rows["label"], strict=True):
                by_value[value].append(label)
            assert all(2 * sum(labels) == len(labels) for labels in by_value.values())


def test_groups_of_a_cut_are_refused():
    values = {"source": "sample", "split": {"group_by": "hexcode"}}
    with pytest.raises(ValidationError, match="split.group_by names a column"):
        TypeAdapter(DataSection).validate_python(values)


def test_other_columns_are_named_with_the_nearest():
    section = TypeAdapter(DataSection).validate_python({"source": "sample"})
    with pytest.raises(InputError, match="column 'vote' .* has the columns votes and rater; did you mean votes"):
        load_data(section, extra_columns=["vote"])
    with pytest.raises(InputError, match="column 'votes' is asked for, but data.source 'sample' has no columns"):
        load_data(section, task="image-classification", extra_columns=["votes"])


@pytest.fixture(scope="module")
def questions(caption_section):
    section = caption_section(source="sample", questions=True)
    return load_data(section, task="image-captioning", extra_columns=["question", "kind", "group"]).splits


def test_each_drawing_is_asked_four_questions_with_ten_right_answers(questions):
    drawings = {f"{each['vendor']}-{each['hexcode']}": each for each in read_sample("test").to_pylist()}
    rows = questions["test"].remove_columns("image")
    assert len(rows) == 4 * len(drawings) == len(set(rows["id"]))
    for row in rows:
        drawing = drawings[row["id"].rpartition("-")[0]]
        group, asked, answers = drawing["group"].replace("-", " and "), row["extra.question"], row["captions"]
        assert len(answers) == 10 and row["extra.group"] == drawing["group"]
        if row["extra.kind"] == "keyword":
            assert asked == "what comes to mind?" and set(answers) == set(drawing["keywords"][:10])
        elif row["extra.kind"] == "group":
            assert asked == "which group is it in?" and set(answers) == {group}
        else:
            assert row["extra.kind"] == "yes or no"
            assert set(answers) == {"yes" if asked == f"is it in {group}?" else "no"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_neither_question_nor_drawing_tells_yes_from_no(questions, split):
    by_question, by_drawing = defaultdict(list), defaultdict(list)
    for row in questions[split].remove_columns("image"):
        if row["extra.kind"] == "yes or no":
            by_question[row["extra.question"]].append(row["captions"][0] == "yes")
            by_drawing[row["id"].rpartition("-")[0]].append(row["captions"][0] == "yes")
    assert all(sorted(answers) == [False, True] for answers in by_drawing.values())
    assert len(by_question) == 9
    # What knows the questions alone answers all with what is more frequent.
    known = sum(max(sum(answers), len(answers) - sum(answers)) for answers in by_question.values())
    assert known / sum(map(len, by_question.values())) < 0.55


def test_questions_about_a_drawing_are_in_one_fold(caption_section):
    section = caption_section(source="sample", questions=True, vendor="fluent", fold={"number": 1, "of": 4})
    splits = load_data(section, task="image-captioning", extra_columns=["question"]).splits
    drawings = {split: {name.rpartition("-")[0] for name in splits[split]["id"]} for split in splits}
    assert drawings["train"] and drawings["validation"] and not drawings["train"] & drawings["validation"]


def test_questions_are_said_to_need_a_setting(caption_section):
    with pytest.raises(InputError, match="'question' is asked for.*data.questions: true gives it"):
        load_data(caption_section(source="sample"), task="image-captioning", extra_columns=["question"])
