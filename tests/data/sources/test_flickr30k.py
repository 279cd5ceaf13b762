from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest

from mmhf.data.sources import flickr30k
from mmhf.errors import InputError

NAMES = [f"{1000 + number}.jpg" for number in range(20)]


def caption(name: str, number: int) -> str:
    return f"Picture {name[:4]} , told for the {number}. time ."


@pytest.fixture
def folder(tmp_path, encode) -> Path:
    """The images nested twice, as in Kaggle's archive."""
    images = tmp_path / "flickr30k_images" / "flickr30k_images"
    images.mkdir(parents=True)
    for name in NAMES:
        (images / name).write_bytes(encode())
    return tmp_path


def write_csv(folder: Path, *, changes: dict[str, str] | None = None) -> None:
    lines = ["image_name| comment_number| comment"]
    for name in NAMES:
        for number in range(5):
            line = f"{name}| {number}| {caption(name, number)}"
            lines.append((changes or {}).get(f"{name}#{number}", line))
    (folder / "flickr30k_images" / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_karpathy(folder: Path) -> None:
    splits = ["train"] * 14 + ["val"] * 3 + ["test"] * 3
    images = [
        {"filename": name, "split": split, "imgid": number, "sentids": [],
         "sentences": [{"raw": caption(name, count), "tokens": [], "sentid": 0} for count in range(5)]}
        for number, (name, split) in enumerate(zip(NAMES, splits, strict=True))
    ]  # fmt: skip
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))


def captions_of(data) -> dict[str, list[str]]:
    return {row["id"]: row["captions"] for table in data.splits.values() for row in table}


EXPECTED = {name: [caption(name, number) for number in range(5)] for name in NAMES}


def test_kaggles_folder(folder, load_captions):
    write_csv(folder)
    data = load_captions(source="flickr30k", path=str(folder))
    assert captions_of(data) == EXPECTED and data.label_names == [] and data.bad_examples == []
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 16, "validation": 2, "test": 2}
    train = data.splits["train"]
    assert set(train.column_names) == {"row", "id", "image", "captions"}
    assert train[0]["row"] == 5 * NAMES.index(train[0]["id"]) + 1
    assert Path(train[0]["image"]["path"]).parent.parent.name == "flickr30k_images"


def test_the_split_is_by_image_and_seed(folder, load_captions):
    write_csv(folder)

    def ids(seed: int) -> list[str]:
        split = {"validation": 0.2, "test": 0.3, "seed": seed}
        data = load_captions(source="flickr30k", path=str(folder), split=split)
        assert {name: len(table) for name, table in data.splits.items()} == {"train": 10, "validation": 4, "test": 6}
        return data.splits["test"]["id"][:]

    assert ids(1) == ids(1) != ids(2)


def test_the_row_without_its_second_bar_is_repaired_and_listed(folder, load_captions):
    broken = {f"{NAMES[3]}#4": f"{NAMES[3]}| 4   A dog runs across the grass ."}
    write_csv(folder, changes=broken)
    data = load_captions(source="flickr30k", path=str(folder))
    assert captions_of(data)[NAMES[3]][4] == "A dog runs across the grass ."
    [listed] = data.bad_examples
    assert (listed.row, listed.id) == (20, NAMES[3]) and "no bar between number and comment" in listed.reason


@pytest.mark.parametrize(
    ("line", "reason"), [("what is this", "1 fields instead of 3"), ("| 1| a dog", "no image is named")]
)
def test_a_row_that_cannot_be_read(folder, load_captions, line, reason):
    write_csv(folder, changes={f"{NAMES[3]}#2": line})
    with pytest.raises(InputError, match=f"row 18: {reason}; data.on_bad_row=skip"):
        load_captions(source="flickr30k", path=str(folder))
    data = load_captions(source="flickr30k", path=str(folder), on_bad_row="skip")
    assert len(captions_of(data)) == 20 and len(captions_of(data)[NAMES[3]]) == 4
    assert [(example.row, example.reason) for example in data.bad_examples] == [(18, reason)]


def test_a_bar_in_a_caption_stays(folder, load_captions):
    write_csv(folder, changes={f"{NAMES[0]}#0": f"{NAMES[0]}| 0| left | right"})
    assert captions_of(load_captions(source="flickr30k", path=str(folder)))[NAMES[0]][0] == "left | right"


def test_the_original_tokens(folder, load_captions):
    lines = [f"{name}#{number}\t{caption(name, number)}" for name in NAMES for number in range(5)]
    (folder / "results_20130124.token").write_text("\n".join(lines) + "\n\n")
    assert captions_of(load_captions(source="flickr30k", path=str(folder))) == EXPECTED
    (folder / "results_20130124.token").write_text("\n".join([*lines, "1000.jpg a dog"]))
    with pytest.raises(InputError, match="row 101: not IMAGE#NUMBER, a tab and a caption: '1000.jpg a dog'"):
        load_captions(source="flickr30k", path=str(folder))


def test_karpathys_splits_are_used_and_come_before_other_files(folder, load_captions):
    write_karpathy(folder)
    write_csv(folder)
    data = load_captions(source="flickr30k", path=str(folder))
    assert captions_of(data) == EXPECTED
    assert data.splits["train"]["id"][:] == NAMES[:14]
    assert data.splits["validation"]["id"][:] == NAMES[14:17] and data.splits["test"]["id"][:] == NAMES[17:]
    forced = load_captions(source="flickr30k", path=str(folder), format="csv")
    assert len(forced.splits["train"]) == 16
    own = load_captions(source="flickr30k", path=str(folder), split={"validation": 0.25, "test": 0.25})
    assert len(own.splits["train"]) == 10 and captions_of(own) == EXPECTED


def test_karpathys_file_can_be_damaged(folder, load_captions):
    write_karpathy(folder)
    path = folder / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    del content["images"][2]["sentences"]
    content["images"][4]["split"] = "holdout"
    path.write_text(json.dumps(content))
    data = load_captions(source="flickr30k", path=str(folder), on_bad_row="skip")
    reasons = {example.row: example.reason for example in data.bad_examples}
    assert "KeyError 'sentences'" in reasons[3] and reasons[5].startswith("the split is 'holdout'")
    path.write_text("{")
    with pytest.raises(InputError, match="dataset_flickr30k.json: cannot be read as JSON"):
        load_captions(source="flickr30k", path=str(folder))
    path.write_text('{"annotations": []}')
    with pytest.raises(InputError, match="has a list `images`"):
        load_captions(source="flickr30k", path=str(folder))


def test_images_without_captions_and_captions_without_images_are_named(folder, load_captions, encode):
    write_csv(folder)
    images = folder / "flickr30k_images" / "flickr30k_images"
    (images / NAMES[7]).unlink()
    (images / "extra.jpg").write_bytes(encode())
    data = load_captions(source="flickr30k", path=str(folder))
    assert {(example.id, example.reason) for example in data.bad_examples} == {
        (NAMES[7], f"the image file is missing: {NAMES[7]}"),
        ("extra.jpg", "no caption names the image"),
    }
    assert len(captions_of(data)) == 19
    with pytest.raises(InputError, match=re.escape("(id extra.jpg): no caption names the image; data.on_empty_text")):
        load_captions(source="flickr30k", path=str(folder), on_empty_text="raise")


def test_captions_without_any_image(folder, load_captions):
    write_csv(folder)
    for name in NAMES:
        (folder / "flickr30k_images" / "flickr30k_images" / name).unlink()
    with pytest.raises(InputError, match="has captions but no images"):
        load_captions(source="flickr30k", path=str(folder))


def test_what_is_not_flickr30k(tmp_path, load_captions):
    with pytest.raises(InputError, match="data.path: no such folder: .*nowhere"):
        load_captions(source="flickr30k", path=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"has no captions of Flickr30k \(dataset_flickr30k.json, .*parquet\)"):
        load_captions(source="flickr30k", path=str(tmp_path))
    (tmp_path / "results.csv").write_text("image,caption\na.jpg,b\n")
    with pytest.raises(InputError, match="not Kaggle's results.csv .* use source: table"):
        load_captions(source="flickr30k", path=str(tmp_path))
    with pytest.raises(InputError, match=r"has no captions of Flickr30k \(karpathy\)"):
        load_captions(source="flickr30k", path=str(tmp_path), format="karpathy")


@pytest.fixture
def hub_form(tmp_path, encode, monkeypatch):
    """Write the Hub's parquet: one split named `test`, the real one in a column, or in none."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(*, with_split: bool) -> Path:
        columns = {
            "image": [{"bytes": encode(), "path": name} for name in NAMES],
            "caption": [EXPECTED[name] for name in NAMES],
            "filename": NAMES,
        }
        if with_split:
            columns["split"] = ["train"] * 14 + ["val"] * 3 + ["test"] * 3
        folder = tmp_path / "repo" / "TEST" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        features = {name: datasets.Value("string") for name in columns if name not in ("image", "caption")}
        features |= {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.select(range(11)).to_parquet(folder / "0000.parquet")
        table.select(range(11, 20)).to_parquet(folder / "0001.parquet")
        return tmp_path / "repo"

    return write


def test_both_hub_forms(hub_form, load_captions):
    repo = str(hub_form(with_split=True))
    for where in ({"repo": repo}, {"path": repo}):
        data = load_captions(source="flickr30k", **where)
        assert {split: len(table) for split, table in data.splits.items()} == {"train": 14, "validation": 3, "test": 3}
        assert captions_of(data) == EXPECTED
    repo = str(hub_form(with_split=False))
    data = load_captions(source="flickr30k", repo=repo, split={"validation": 0.1, "test": 0.2})
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 14, "validation": 2, "test": 4}
    assert captions_of(data) == EXPECTED


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({}, ("nlphuji/flickr30k", "refs/convert/parquet")),
        ({"repo": "lmms-lab/flickr30k"}, ("lmms-lab/flickr30k", None)),
        ({"revision": "abc"}, ("nlphuji/flickr30k", "abc")),
    ],
)
def test_without_a_path_it_comes_from_the_hub(load_captions, monkeypatch, values, asked):
    calls = []

    def load_dataset(path, name=None, **options):
        calls.append((path, options["revision"]))
        raise ConnectionError("no network here")

    monkeypatch.setattr(flickr30k.datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=f"cannot reach the data set {asked[0]}: no network here"):
        load_captions(source="flickr30k", **values)
    assert calls == [asked]
