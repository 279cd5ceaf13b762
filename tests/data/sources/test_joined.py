"""Several data sets in one table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmhf.data.images import decode_image
from mmhf.data.loading import LoadedData, load_data
from mmhf.errors import InputError
from mmhf.recipe import recipe_from_dict


@pytest.fixture
def places(tmp_path: Path, encode) -> Path:
    """A table of paths, a table with images inside, and class folders with a broken image; labels agree by name."""
    names = []
    for number in range(20):
        name = f"{number}.png"
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(encode(("red", "blue")[number % 2], "PNG"))
        names.append(f"photos/{name}")
    kinds = ["0", "1.0"] * 10
    table = pd.DataFrame({"image": names, "text": [f"a {kind}" for kind in kinds], "label": kinds})
    table["sex"] = ["f", "m", "f", "f"] * 5
    table.to_csv(tmp_path / "photos.csv", index=False)
    inside = pd.DataFrame(
        {
            "image": [encode(("red", "blue")[number % 2], "PNG") for number in range(8)],
            "text": [f"drawing {number}" for number in range(8)],
            "label": ["cat", "dog"] * 4,
            "sex": ["m"] * 8,
            "part": ["train"] * 6 + ["test"] * 2,
        }
    )
    inside.to_parquet(tmp_path / "drawings.parquet")
    for number in range(6):
        folder = tmp_path / "folders" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(("red", "blue")[number % 2], "PNG"))
    (tmp_path / "folders" / "dog" / "1.png").write_bytes(b"no image")
    return tmp_path


def datasets_in(places: Path) -> dict[str, dict[str, Any]]:
    photos = {"source": "table", "path": str(places / "photos.csv"), "labels": {"0": "cat", "1": "dog"}}
    drawings = {"source": "table", "path": str(places / "drawings.parquet"), "split_column": "part"}
    return {"photos": photos, "drawings": drawings}


def load(section, datasets: dict[str, Any], task: str = "image-text-classification", **values: Any) -> LoadedData:
    options = {key: values.pop(key) for key in ("extra_columns", "splits") if key in values}
    data = {"source": "joined", "datasets": datasets, "find_duplicates": "never", **values}
    return load_data(section(**data), task=task, **options)


def test_each_keeps_or_cuts_its_own_splits_and_labels_are_one(section, places):
    folders = {
        "source": "image_folder",
        "path": str(places / "folders"),
        "split": {"validation": 0, "test": 0.34, "stratify": False},
    }
    data = load(
        section,
        {**datasets_in(places), "folders": folders},
        "image-classification",
        extra_columns=["dataset"],
    )
    counts = {split: Counter(rows["extra.dataset"]) for split, rows in data.splits.items()}
    assert counts == {
        "train": {"photos": 16, "drawings": 6, "folders": 3},
        "validation": {"photos": 2},
        "test": {"photos": 2, "drawings": 2, "folders": 2},
    }
    assert data.label_names == ["cat", "dog"]
    ids = [each for rows in data.splits.values() for each in rows["id"]]
    assert len(set(ids)) == len(ids)
    assert {"photos/1", "drawings/1", "folders/cat/0.png"} <= set(ids)
    colour = {0: (254, 0, 0), 1: (0, 0, 254)}
    for rows in data.splits.values():
        for row in rows:
            pixel = np.asarray(decode_image(row["image"]))[0, 0]
            assert np.abs(pixel.astype(int) - colour[row["label"]]).max() <= 1, row["id"]
    (bad,) = data.bad_examples
    assert bad.id == "folders/dog/1.png" and "not" in bad.reason


def test_all_are_cut_together(section, places):
    table = pd.read_csv(places / "photos.csv", dtype=str)
    table["label"] = ["cat", "dog"] * 10
    table["who"] = [f"p{number % 5}" for number in range(20)]
    table.iloc[:10].to_csv(places / "a.csv", index=False)
    table.iloc[10:].to_csv(places / "b.csv", index=False)
    both = {name: {"source": "table", "path": str(places / f"{name}.csv")} for name in "ab"}
    split = {"validation": 0.2, "test": 0.2, "group_by": "who"}
    data = load(section, both, split=split, extra_columns=["dataset", "who"])
    people = [set(rows["extra.who"]) for rows in data.splits.values()]
    assert sum(map(len, people)) == len(set().union(*people)) == 5  # a person of both data sets is in one split
    whole = load(section, both, split={**split, "group_by": "dataset", "test": 0.0, "validation": 0.5})
    assert [{name.partition("/")[0] for name in rows["id"]} for rows in whole.splits.values()] in (
        [{"a"}, {"b"}],
        [{"b"}, {"a"}],
    )
    with pytest.raises(InputError, match=r"datasets\.drawings: has splits of its own \(train, test\)"):
        load(section, {**both, "drawings": datasets_in(places)["drawings"]}, split={"test": 0.2})


def test_filters_and_columns_see_the_joined_table(section, places):
    filters = {"datasets": ["photos"], "where": {"sex": "f"}}
    data = load(section, datasets_in(places), filters=filters, extra_columns=["dataset", "sex"])
    assert [step.rows for step in data.filter_steps] == [28, 20, 15]
    assert {value for rows in data.splits.values() for value in rows["extra.sex"]} == {"f"}
    sub = {"sub_sources": {"drawings": ["m"]}, "sub_source_column": "sex"}
    assert [step.rows for step in load(section, datasets_in(places), filters=sub).filter_steps] == [28, 28]
    data = load(section, datasets_in(places), column="origin", extra_columns=["origin"], limit=3)
    assert {len(rows) for rows in data.splits.values()} == {2, 3}  # over all data sets


def test_what_one_lacks_is_named_with_its_name(section, places):
    given = datasets_in(places)
    pd.read_parquet(places / "drawings.parquet").drop(columns="sex").to_parquet(places / "drawings.parquet")
    given["photos"]["path"] = str(places / "absent.csv")
    with pytest.raises(InputError) as caught:
        load(section, given, extra_columns=["sex"])
    assert "data.datasets.photos: " in str(caught.value) and "no such file" in str(caught.value)
    assert "data.datasets.drawings: " in str(caught.value) and "no column 'sex'" in str(caught.value)
    grouped = {**given["drawings"], "split": {"group_by": "part"}}
    with pytest.raises(InputError, match=r"data.datasets.drawings: has a column 'part' of its own"):
        load(section, {**datasets_in(places), "drawings": grouped}, column="part")
    clinical = {"source": "clinical", "path": str(places), "tables": {"ddi": {"table": "t.csv", "images": "i"}}}
    with pytest.raises(InputError, match="datasets.derm: has a column 'dataset' of its own; name another"):
        load(section, {**datasets_in(places), "derm": clinical})


def test_one_label_in_two_spellings_is_refused(section, places):
    given = datasets_in(places)
    given["photos"]["labels"] = {"0": "Cat", "1": "dog"}
    with pytest.raises(InputError, match=r"the label .?Cat.? of photos is written .?cat.? in drawings; .*labels"):
        load(section, given)
    both = load(section, given, labels={"Cat": "Cat", "cat": "cat", "dog": "dog"})
    assert both.label_names == ["Cat", "cat", "dog"]
    given["photos"]["labels"] = {"0": "cat"}
    skipped = load(section, given, on_bad_row="skip", labels={"dog": "dog", "cat": "cat"})
    assert skipped.label_names == ["dog", "cat"]
    assert {each.reason for each in skipped.bad_examples} == {"unknown label '1'"}
    assert len(skipped.bad_examples) == 10


def test_a_split_that_one_has_not_is_said(section, places, caplog):
    load(section, datasets_in(places))
    assert "data.datasets: validation has no rows of drawings" in caplog.text


def test_captions_with_groups_of_a_missing_column(load_captions, places, encode):
    for name in ("x", "y"):
        (places / name).mkdir()
        lines = [{"file_name": f"{number}.png", "caption": f"{name} {number}"} for number in range(4)]
        for line in lines:
            (places / name / line["file_name"]).write_bytes(encode("green", "PNG"))
        (places / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    both = {name: {"source": "table", "path": str(places / name)} for name in "xy"}
    data = load_captions(source="joined", datasets=both, split={"validation": 0.25, "test": 0.25})
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 4, "validation": 2, "test": 2}
    for rows in data.splits.values():
        for row in rows:
            folder, name = row["id"].split("/")
            assert row["captions"] == [f"{folder} {name.removesuffix('.png')}"]
            assert Path(row["image"]["path"]) == places / folder / name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"datasets": {"a": {"image_size": 96}}},
            "datasets.a.image_size: holds for all data sets; set data.image_size",
        ),
        ({"datasets": {"b": {"path": "./a.csv"}}}, "datasets.b: is .*a.csv like datasets.a"),
        (
            {"datasets": {"c": {"source": "sample", "vendor": "noto"}, "d": {"source": "sample"}}},
            "datasets.d: is the embedded drawings by noto like datasets.c",
        ),
        ({"weights": {"a": 1.0, "b": 0}}, "data.weights.b: must be greater than 0"),
        ({"weights": {"a": 1.0, "bb": 1.0}}, "weights.bb: there is no such data set; did you mean b"),
        ({"weights": {"a": 1.0}}, "weights: b has none"),
        ({"split": {"test": 0.2}, "datasets": {"a": {"split": {"test": 0.3}}}}, "datasets.a.split: `split` cuts all"),
        ({"datasets": {"c": {"source": "webdataset", "train": "x.tar"}}}, "datasets.c: is a stream"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], said: str):
    data: dict[str, Any] = {
        "source": "joined",
        "datasets": {name: {"source": "table", "path": f"{name}.csv"} for name in "ab"},
    }
    for name, values in changes.pop("datasets", {}).items():
        data["datasets"][name] = {**data["datasets"].get(name, {}), **values}
    with pytest.raises(InputError, match=said):
        recipe_from_dict({"task": "contrastive", "data": {**data, **changes}}, name="joined")


def test_a_resolved_recipe_is_read_again():
    members = {"a": {"source": "table", "path": "a.csv"}, "b": {"source": "sample"}}
    data = {"source": "joined", "datasets": members, "image_size": 64}
    resolved = recipe_from_dict({"task": "image-classification", "data": data}, name="joined")
    again = recipe_from_dict(resolved.recipe.model_dump(), name="joined")
    assert again.recipe == resolved.recipe
    assert "image_size" not in resolved.recipe.model_dump()["data"]["datasets"]["b"]


def test_texts_are_asked_of_each():
    members = {"a": {"source": "table", "path": "a.csv"}, "b": {"source": "image_folder", "path": "b"}}
    recipe = {"task": "image-text-classification", "data": {"source": "joined", "datasets": members}}
    with pytest.raises(InputError, match="datasets.b.source: has no texts"):
        recipe_from_dict(recipe, name="joined")
