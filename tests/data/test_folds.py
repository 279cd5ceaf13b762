"""Folds are a partition as scikit-learn defines one, with whole groups and equal shares of each class."""

from __future__ import annotations

from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold, check_cv
from small_data import make_rows, picture

from mmhf.data.folds import fold_numbers, take_fold
from mmhf.data.loading import load_data
from mmhf.errors import InputError
from mmhf.recipe.row_sections import FoldSection, SplitSection

ROWS = st.lists(st.tuples(st.sampled_from("aaab"), st.integers(0, 9) | st.none()), min_size=1, max_size=120)


def splits_of(folds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.flatnonzero(folds != number), np.flatnonzero(folds == number)) for number in range(folds.max() + 1)]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(2, 7), st.booleans(), st.booleans(), st.integers(0, 5))
def test_folds_are_a_partition_with_whole_groups_and_equal_shares(values, count, stratify, grouped, seed):
    labels = [label for label, _ in values]
    groups = [None if group is None else str(group) for _, group in values]
    rules = SplitSection(stratify=stratify, seed=seed)
    units = len({*groups} - {None}) + groups.count(None) if grouped else len(values)
    if units < count:
        with pytest.raises(InputError, match=f"{count} folds: (rows|groups) to train and validate on"):
            fold_numbers(rules, count, labels, groups if grouped else None)
        return
    folds = fold_numbers(rules, count, labels, groups if grouped else None)
    # What scikit-learn takes for folds: each row is tested on once, and trained on in all others.
    given_splits = list(check_cv(splits_of(folds)).split(labels))
    assert len(given_splits) == count
    assert sorted(np.concatenate([test for _, test in given_splits]).tolist()) == list(range(len(values)))
    assert all(len(train) + len(test) == len(values) and len(test) for train, test in given_splits)
    if grouped:
        homes = [{groups[row] for row in test} - {None} for _, test in given_splits]
        assert sum(map(len, homes)) == len(set().union(*homes))
    else:
        sizes = Counter(folds.tolist()).values()
        assert max(sizes) - min(sizes) <= 1
        if stratify:
            for label in set(labels):
                counts = np.bincount(folds[np.array(labels) == label], minlength=count)
                assert counts.max() - counts.min() <= 1
    assert (folds == fold_numbers(rules, count, labels, groups if grouped else None)).all()


def test_folds_are_as_even_as_those_of_scikit_learn():
    labels = np.random.default_rng(0).choice(list("abc"), size=203, p=[0.7, 0.2, 0.1])
    ours = splits_of(fold_numbers(SplitSection(), 5, labels.tolist()))
    theirs = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
    counts = [sorted(tuple(Counter(labels[test]).items()) for _, test in each) for each in (ours, theirs)]
    spread = [{label: sorted(dict(fold)[label] for fold in each) for label in "abc"} for each in counts]
    assert spread[0] == spread[1]


def test_groups_of_one_class_each_are_spread_over_all_folds():
    groups = [str(number // 4) for number in range(400)]
    labels = [f"class {int(group) // 2}" for group in groups]
    sizes = np.bincount(fold_numbers(SplitSection(), 5, labels, groups))
    assert sizes.tolist() == [80] * 5


def test_several_labels_are_stratified_label_by_label():
    matrix = np.random.default_rng(3).random((600, 4)) < [0.5, 0.3, 0.1, 0.05]
    sets = pa.chunked_array([pa.array([[f"l{place}" for place in np.flatnonzero(row)] for row in matrix])])
    folds = fold_numbers(SplitSection(), 5, sets)
    for number in range(5):
        assert (np.abs(matrix[folds == number].sum(axis=0) - matrix.sum(axis=0) / 5) <= 3).all()


@pytest.mark.parametrize(("rare", "is_refused"), [(2, True), (3, False)])
def test_each_fold_needs_a_row_of_each_of_several_labels(rare, is_refused):
    values = [[1, int(row < rare)] for row in range(12)]
    features = datasets.Features({"labels": datasets.List(datasets.Value("float32"), length=2)})
    rows = datasets.Dataset.from_dict({"labels": values}, features=features)
    if is_refused:
        with pytest.raises(InputError, match=r"3 folds: the label 'hat' has 2 rows"):
            take_fold({"train": rows}, FoldSection(number=1, of=3), SplitSection(), ["cat", "hat"])
        rows = take_fold({"train": rows}, FoldSection(number=1, of=3), SplitSection(stratify=False), ["cat", "hat"])
        assert len(rows["validation"]) == 4
        return
    fold = take_fold({"train": rows}, FoldSection(number=1, of=3), SplitSection(), ["cat", "hat"])
    assert np.array(fold["validation"]["labels"][:])[:, 1].sum() == 1


@pytest.fixture
def tables(tmp_path):
    """train.csv and validation.csv without ids, each with its own folder of images; row 3 of the second is broken."""
    rows = make_rows(tmp_path, 24)
    for name, part in (("train", rows[:16]), ("validation", rows[16:])):
        folder = tmp_path / name
        folder.mkdir()
        for number, row in enumerate(part):
            content = picture(number if name == "train" else 100 + number)
            (folder / row["photo"]).write_bytes(b"" if (name, number) == ("validation", 2) else content)
        renamed = [
            {"image": row["photo"], "text": row["title"], "label": row["kind"], "patient": number // 3}
            for number, row in enumerate(part)
        ]
        pd.DataFrame(renamed).to_csv(folder / "table.csv", index=False)
    return {name: str(tmp_path / name / "table.csv") for name in ("train", "validation")}


def load_fold(section, tables, number, of=3, *, splits=None, **values):
    made = section(source="table", fold={"number": number, "of": of}, **tables, **values)
    return load_data(made, splits=splits)


def test_given_splits_are_pooled_and_their_rows_keep_image_and_name(section, tables):
    folds = [load_fold(section, tables, number) for number in (1, 2, 3)]
    held = [set(fold.splits["validation"]["id"][:]) for fold in folds]
    everything = {f"train/{row}" for row in range(1, 17)} | {f"validation/{row}" for row in range(1, 9)} - {
        "validation/3"
    }
    assert set().union(*held) == everything and sum(map(len, held)) == len(everything)
    for fold in folds:
        assert set(fold.splits["train"]["id"][:]) == everything - set(fold.splits["validation"]["id"][:])
        assert [(each.split, each.row) for each in fold.bad_examples] == [("validation", 3)]
        for split in ("train", "validation"):
            for row in fold.splits[split]:
                home = row["id"].partition("/")[0]
                assert f"/{home}/" in row["image"]["path"], row
        assert "group" not in fold.splits["train"].column_names
    assert len({str(fold.fingerprint()) for fold in folds}) == 3


def test_one_split_of_a_fold_can_be_asked_for(section, tables):
    whole, part = load_fold(section, tables, 2), load_fold(section, tables, 2, splits=["validation"])
    assert (
        list(part.splits) == ["validation"] and part.fingerprint()["validation"] == whole.fingerprint()["validation"]
    )
    assert part.bad_examples == whole.bad_examples


def test_groups_stay_in_one_fold_and_the_test_split_as_it_is(section, tmp_path):
    make_rows(tmp_path, 60)
    rows = [
        {"image": f"photos/{row:03}.jpg", "text": f"text {row}", "label": "ab"[row % 2], "patient": row // 3}
        for row in range(60)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    table = {"source": "table", "path": str(tmp_path / "t.csv"), "split": {"group_by": "patient", "test": 0.2}}
    plain = load_data(section(**table))
    seen = []
    for number in range(1, 5):
        fold = load_data(section(**table, fold={"number": number, "of": 4}))
        assert fold.fingerprint()["test"] == plain.fingerprint()["test"]
        patients = [{(int(row) - 1) // 3 for row in fold.splits[split]["row"][:]} for split in ("train", "validation")]
        assert patients[0].isdisjoint(patients[1])
        seen += fold.splits["validation"]["row"][:]
    assert sorted(seen) == sorted(plain.splits["train"]["row"][:] + plain.splits["validation"]["row"][:])
    with pytest.raises(InputError, match="20 folds: groups to train and validate on: 16"):
        load_data(section(**table, fold={"number": 1, "of": 20}))


def test_a_class_with_fewer_rows_than_folds_is_named(section, tables):
    with pytest.raises(InputError, match="9 folds: the label 'bird' has 7 rows"):
        load_fold(section, tables, 1, of=9)
    with pytest.raises(ValueError, match="number = 4 is more than of = 3"):
        load_fold(section, tables, 4)
