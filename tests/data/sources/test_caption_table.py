from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmhf.data.captions import captions_in
from mmhf.errors import InputError

SCRIPTS = ["一只狗在草地上奔跑", "🐕‍🦺🌿", "كلب يركض في العشب", "कुत्ता घास पर दौड़ता है", "a dog\u2028runs"]


@pytest.fixture
def folder(tmp_path, encode) -> Path:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(encode(kind="PNG" if number % 2 else "JPEG"))
    return tmp_path


def by_image(data) -> dict[str, list[str]]:
    return {row["id"]: row["captions"] for table in data.splits.values() for row in table}


ONE_COLUMN = {f"{number}.jpg": [f"picture {number}", SCRIPTS[number % 5]] for number in range(10)}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("form", ["rows", "columns", "list"])
def test_every_way_to_write_captions_gives_the_same(folder, load_captions, kind, form):
    columns = "caption" if form != "columns" else ["first", "second"]
    if form == "rows":
        rows = [{"image": name, "caption": text} for number in range(2) for name, texts in ONE_COLUMN.items()
                for text in texts[number : number + 1]]  # fmt: skip
    elif form == "columns":
        rows = [{"image": name, "first": one, "second": two} for name, (one, two) in ONE_COLUMN.items()]
    else:
        rows = [{"image": name, "caption": texts} for name, texts in ONE_COLUMN.items()]
    path = folder / f"t.{kind}"
    frame = pd.DataFrame(rows)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.to_parquet(path)
    data = load_captions(source="table", train=str(path), columns={"captions": columns})
    assert by_image(data) == ONE_COLUMN and data.bad_examples == []


def test_the_captions_of_an_image_stay_together_when_it_is_cut(folder, load_captions):
    rows = [
        {"image": f"./{n}.jpg" if n % 3 else f"{n}.jpg", "caption": f"{n} {c}"} for c in range(3) for n in range(10)
    ]
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    data = load_captions(source="table", path=str(folder / "t.csv"), split={"validation": 0.2, "test": 0.3})
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 5, "validation": 2, "test": 3}
    assert by_image(data) == {f"{n}.jpg": [f"{n} {c}" for c in range(3)] for n in range(10)}


def test_a_column_can_say_the_split(folder, load_captions):
    rows = [{"image": f"{n}.jpg", "caption": f"c{n}", "part": ["train", "val", "TEST", None][n % 4]} for n in range(8)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"source": "table", "path": str(folder / "t.jsonl"), "split_column": "part"}
    with pytest.raises(InputError, match="row 4 .*: the split is None, not train, validation or test"):
        load_captions(**values)
    data = load_captions(**values, on_bad_row="skip")
    assert data.splits["validation"]["id"][:] == ["1.jpg", "5.jpg"] and len(data.bad_examples) == 2


def test_embedded_images_are_merged_by_content_and_may_have_ids(tmp_path, load_captions, encode):
    content = [encode("red"), encode("blue")]
    rows = [{"image": {"bytes": content[n % 2], "path": None}, "caption": f"c{n}", "key": n % 2} for n in range(4)]
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    data = load_captions(source="table", train=str(tmp_path / "t.parquet"), columns={"id": "key"})
    assert by_image(data) == {"0": ["c0", "c2"], "1": ["c1", "c3"]}
    assert data.splits["train"][1]["image"]["bytes"] == content[1]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_with_metadata(folder, load_captions, name):
    rows = [{"file_name": f"{number}.jpg", "caption": f"c{number}"} for number in range(8)]
    if name.endswith("csv"):
        pd.DataFrame(rows).to_csv(folder / name, index=False)
    else:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    data = load_captions(source="table", path=str(folder), split={"validation": 0, "test": 0})
    assert by_image(data) == {f"{number}.jpg": [f"c{number}"] for number in range(8)}
    assert [(bad.id, bad.reason) for bad in data.bad_examples] == [
        ("8.jpg", "no caption names the image"),
        ("9.jpg", "no caption names the image"),
    ]


def test_folders_named_as_splits(tmp_path, load_captions, encode):
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        (tmp_path / split).mkdir()
        rows = [{"file_name": f"{split}{n}.jpg", "caption": [f"{split} {n}", "again"]} for n in range(count)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for n in range(count):
            (tmp_path / split / f"{split}{n}.jpg").write_bytes(encode())
    data = load_captions(source="table", path=str(tmp_path))
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 4, "validation": 2, "test": 3}
    assert data.splits["validation"][1]["captions"] == ["val 1", "again"]
    assert set(load_captions(source="table", path=str(tmp_path), wanted=["test"]).splits) == {"test"}
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match="are both validation"):
        load_captions(source="table", path=str(tmp_path))


def test_empty_captions_are_left_out_and_listed(folder, load_captions):
    captions = [["one", "", "  "], [""], [], None, "fine", ["\u200b\u200e", "seen"], "\ud83d half"]
    rows = [{"image": f"{number}.jpg", "caption": value} for number, value in enumerate(captions)]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_captions(source="table", train=str(folder / "t.jsonl"))
    assert by_image(data) == {"0.jpg": ["one"], "4.jpg": ["fine"], "5.jpg": ["seen"], "6.jpg": ["? half"]}
    assert [(bad.row, bad.reason) for bad in data.bad_examples] == [
        (1, "caption 2 is empty"),
        (1, "caption 3 is empty"),
        (2, "the image has no caption"),
        (3, "no caption names the image"),
        (4, "the image has no caption"),
        (6, "caption 1 is empty"),
    ]
    with pytest.raises(InputError, match=r"row 1 \(id 0.jpg\): caption 2 is empty; data.on_empty_text=skip goes on"):
        load_captions(source="table", train=str(folder / "t.jsonl"), on_empty_text="raise")


@pytest.mark.parametrize("value", [{"a": 1}, 7, ["fine", 3]])
def test_a_caption_that_is_no_text(folder, load_captions, value):
    rows = [{"image": "0.jpg", "caption": "x"}, {"image": "1.jpg", "caption": value}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="row 2: a caption is a (dict|int), not a text; data.on_bad_row=skip"):
        load_captions(source="table", train=str(folder / "t.jsonl"))
    assert list(by_image(load_captions(source="table", train=str(folder / "t.jsonl"), on_bad_row="skip"))) == ["0.jpg"]


def test_no_path_leaves_the_folder(folder, load_captions):
    (folder / "inner").mkdir()
    pd.DataFrame([{"image": "../0.jpg", "caption": "x"}]).to_csv(folder / "inner" / "t.csv", index=False)
    with pytest.raises(InputError, match="row 1 .* the image path leaves the data folder: ../0.jpg"):
        load_captions(source="table", train=str(folder / "inner" / "t.csv"))


def test_what_is_not_there(folder, load_captions):
    pd.DataFrame([{"image": "0.jpg", "capton": "x"}]).to_csv(folder / "t.csv", index=False)
    with pytest.raises(InputError, match="no column 'caption'; did you mean capton"):
        load_captions(source="table", train=str(folder / "t.csv"))
    with pytest.raises(InputError, match="has none of metadata.jsonl, metadata.csv, metadata.parquet"):
        load_captions(source="table", path=str(folder))
    with pytest.raises(InputError, match="data.image_root: no such folder"):
        load_captions(
            source="table", train=str(folder / "t.csv"), image_root="nowhere", columns={"captions": "capton"}
        )
    with pytest.raises(InputError, match="no split 'test'; there is train"):
        load_captions(
            source="table", train=str(folder / "t.csv"), columns={"captions": "capton"}, wanted=["train", "test"]
        )


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_list_survives_being_written_into_a_field(texts):
    for written in (json.dumps(texts), str(texts), json.dumps(texts, ensure_ascii=False)):
        assert captions_in(written) == texts


@given(st.text())
@example(")")
def test_a_text_is_one_caption_whatever_it_looks_like(text):
    if not text.rstrip().endswith("]"):
        assert captions_in("[" + text) == ["[" + text]
    if not text.lstrip().startswith(("[", "(", "array(")):
        assert captions_in(text) == [text]
