from __future__ import annotations

import datasets
import pytest

from mmhf.errors import InputError


@pytest.fixture
def repo(tmp_path, encode, monkeypatch):
    """Write a data set: split → rows of (id, caption or captions)."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(parts, *, extra=None):
        for split, rows in parts.items():
            columns = {
                "picture": [{"bytes": encode(), "path": None} for _ in rows],
                "key": [key for key, _ in rows],
                "words": [words for _, words in rows],
                **{name: values[split] for name, values in (extra or {}).items()},
            }
            features = datasets.Dataset.from_dict({"words": columns["words"], "key": columns["key"]}).features
            for name in extra or {}:
                features[name] = datasets.ClassLabel(names=["train", "dev", "test"])
            table = datasets.Dataset.from_dict(
                columns, features=datasets.Features({**features, "picture": datasets.Image()})
            )
            (tmp_path / "repo").mkdir(exist_ok=True)
            table.to_parquet(tmp_path / "repo" / f"{split}-00000.parquet")
        return str(tmp_path / "repo")

    return write


COLUMNS = {"image": "picture", "captions": "words"}


def test_splits_of_a_data_set(repo, load_captions):
    path = repo({"train": [(n, [f"a{n}", f"b{n}"]) for n in range(6)], "test": [(9, ["z"]), (8, [""])]})
    data = load_captions(source="hub", path=path, columns=COLUMNS)
    assert data.splits["train"]["captions"][:] == [[f"a{n}", f"b{n}"] for n in range(6)]
    assert data.splits["test"]["captions"][:] == [["z"]] and data.splits["test"]["row"][:] == [1]
    assert set(data.splits["test"][0]) == {"row", "id", "image", "captions"}
    assert data.splits["test"][0]["image"]["bytes"].startswith(b"\xff\xd8")
    assert [(bad.split, bad.row, bad.reason) for bad in data.bad_examples] == [("test", 2, "the image has no caption")]
    cut = load_captions(source="hub", path=path, columns=COLUMNS, split={"validation": 0.5, "test": 0})
    assert {split: len(table) for split, table in cut.splits.items()} == {"train": 3, "validation": 3}
    named = load_captions(source="hub", path=path, columns=COLUMNS, splits={"validation": "test"})
    assert set(named.splits) == {"validation"}


def test_rows_of_one_id_are_one_image(repo, load_captions):
    path = repo({"train": [(n % 3, f"c{n}") for n in range(7)]})
    data = load_captions(source="hub", path=path, columns={**COLUMNS, "id": "key"})
    assert data.splits["train"]["captions"][:] == [["c0", "c3", "c6"], ["c1", "c4"], ["c2", "c5"]]
    assert data.splits["train"]["id"][:] == ["0", "1", "2"]
    assert len(load_captions(source="hub", path=path, columns=COLUMNS).splits["train"]) == 7


def test_a_column_can_say_the_split(repo, load_captions):
    path = repo({"test": [(n, f"c{n}") for n in range(6)]}, extra={"part": {"test": [0, 1, 2, 0, 1, 2]}})
    data = load_captions(source="hub", path=path, columns=COLUMNS, split_column="part")
    assert {split: table["captions"][:] for split, table in data.splits.items()} == {
        "train": [["c0"], ["c3"]], "validation": [["c1"], ["c4"]], "test": [["c2"], ["c5"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": {"image": "picture"}}, "no column 'caption'"),
        ({"columns": {"image": "words", "captions": "words"}}, "column 'words' has no images"),
        ({"columns": {**COLUMNS, "captions": "key"}, "on_bad_row": "raise"}, "a caption is a int, not a text"),
        ({"columns": COLUMNS, "splits": {"train": "all"}}, "no split 'all'; it has train, test"),
        ({"columns": COLUMNS, "split_column": "key"}, "is split already, into train, test"),
        ({"columns": COLUMNS, "splits": {"test": "test"}, "split": {"test": 0.1}}, "no split 'train' for data.split"),
    ],
)
def test_what_does_not_fit(repo, load_captions, values, message):
    path = repo({"train": [(1, "a"), (2, "b")], "test": [(3, "c")]})
    with pytest.raises(InputError, match=message):
        load_captions(source="hub", path=path, **values)
