from __future__ import annotations

import datasets
import pytest

from mmhf.data.loading import load_data
from mmhf.errors import InputError

FEATURES = datasets.Features(
    {
        "picture": datasets.Image(),
        "title": datasets.Value("string"),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "key": datasets.Value("int64"),
        "owner": datasets.Value("string"),
    }
)
COLUMNS = {"image": "picture", "text": "title", "label": "kind"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def repository(tmp_path, encode):
    def rows(count: int, broken: int | None = None):
        images = [{"bytes": encode("red"), "path": None} for _ in range(count)]
        if broken is not None:
            images[broken]["bytes"] = b"<html>"
        columns = {
            "picture": images,
            "title": [f"title {number}" for number in range(count)],
            "kind": [number % 2 for number in range(count)],
            "key": [number * 100 for number in range(count)],
            "owner": [f"owner {number // 4}" for number in range(count)],
        }
        return datasets.Dataset.from_dict(columns, features=FEATURES)

    folder = tmp_path / "repository"
    folder.mkdir()
    rows(20, broken=3).to_parquet(folder / "train-00000-of-00001.parquet")
    rows(6).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def load(section, repository, **values):
    options = {key: values.pop(key) for key in ("splits_wanted", "label_names") if key in values}
    values = {"columns": COLUMNS, **values}
    return load_data(
        section(source="hub", path=repository, **values),
        splits=options.get("splits_wanted"),
        label_names=options.get("label_names"),
    )


def test_rows_are_those_of_every_source(section, repository):
    data = load(section, repository, columns={**COLUMNS, "id": "key"})
    train = data.splits["train"]
    assert data.label_names == ["cat", "dog"]
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 19, "test": 6}
    assert train["row"][:5] == [1, 2, 3, 5, 6]
    assert train["id"][:5] == ["0", "100", "200", "400", "500"]
    assert train["text"][3] == "title 4" and train["label"][3] == 0
    assert train[0]["image"]["bytes"].startswith(b"\xff\xd8") and set(train[0]) == {
        "row",
        "id",
        "image",
        "text",
        "label",
    }
    [bad] = data.bad_examples
    assert bad[:3] == ("train", 4, "300") and "not an image" in bad.reason


def test_cutting_limiting_and_blanking(section, repository):
    split = {"validation": 0.2, "test": 0.2, "group_by": "owner"}
    data = load(section, repository, split=split, columns={**COLUMNS, "id": "owner"}, on_bad_image="blank")
    owners = [set(rows["id"]) for rows in data.splits.values()]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 5
    assert sum(map(len, data.splits.values())) == 20
    limited = load(section, repository, limit=4, limit_seed=1)
    assert {name: len(rows) for name, rows in limited.splits.items()} == {"train": 4, "test": 4}


def test_split_names_and_labels_can_be_mapped(section, repository):
    data = load(section, repository, splits={"validation": "test"}, labels={"dog": "beast", "cat": "pet"})
    assert list(data.splits) == ["validation"]
    assert data.label_names == ["beast", "pet"]
    assert data.splits["validation"]["label"][:2] == [1, 0]
    flipped = load(section, repository, splits_wanted=["test"], label_names=["dog", "cat"])
    assert flipped.splits["test"]["label"][:2] == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": {**COLUMNS, "text": "titel"}}, "no column 'titel'; did you mean title"),
        ({"columns": {**COLUMNS, "image": "title"}}, "column 'title' has no images"),
        ({"splits": {"train": "training"}}, "no split 'training'; it has train, test"),
        ({"splits_wanted": ["validation"]}, "no split 'validation'; there is train, test"),
        ({"streaming": True, "split": {}}, "a stream cannot be cut"),
        ({"label_names": ["cat", "bird"]}, "no label 'dog'"),
        ({"streaming": True, "columns": {**COLUMNS, "label": "owner"}}, "labels must be given"),
    ],
)
def test_what_does_not_fit_is_named(section, repository, values, message):
    with pytest.raises(InputError, match=message):
        load(section, repository, **values)


def test_an_absent_data_set(section, tmp_path):
    with pytest.raises(InputError, match="cannot (load|reach) the data set") as caught:
        load(section, str(tmp_path / "absent"))
    assert "\n" not in str(caught.value)


def test_a_stream_reads_nothing_ahead_and_gives_the_same_rows(section, repository):
    streamed = load(section, repository, streaming=True, columns={**COLUMNS, "id": "key"}, limit=8)
    loaded = load(section, repository, columns={**COLUMNS, "id": "key"})
    assert isinstance(streamed.splits["train"], datasets.IterableDataset)
    assert streamed.fingerprint() == {"train": "streamed", "test": "streamed"}
    assert streamed.num_rows("train") is None and loaded.num_rows("train") == 19
    rows = list(streamed.splits["train"])
    assert len(rows) == 8
    assert [row for row in rows if row["row"] != 4] == [loaded.splits["train"][number] for number in range(7)]


def test_a_stream_can_drop_rows_without_a_known_label(section, repository):
    labels = {"dog": "beast", "wolf": "wild"}
    skipping = load(section, repository, streaming=True, labels=labels, on_bad_row="skip")
    assert [row["label"] for row in skipping.splits["test"]] == [0, 0, 0]
    with pytest.raises(InputError, match="unknown label 'cat'"):
        list(load(section, repository, streaming=True, labels=labels).splits["test"])
