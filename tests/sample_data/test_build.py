from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from mmhf.sample_data import SAMPLE_PATH, read_sample
from mmhf.sample_data.build import assign_splits, main, read_names


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_sample().to_pylist()


def test_the_file_is_small_and_its_licences_lie_beside_it():
    assert SAMPLE_PATH.stat().st_size < 6_000_000
    licences = SAMPLE_PATH.parent / "licences"
    index = (licences / "README.md").read_text()
    texts = [path.name for path in licences.glob("*.txt")]
    assert len(texts) == 4 and all(f"`{name}`" in index for name in texts)


def test_only_artists_whose_licence_allows_it_and_evaluation_by_the_other(rows):
    assert {(row["split"], row["vendor"]) for row in rows} == {
        ("train", "noto"),
        ("validation", "fluent"),
        ("test", "fluent"),
    }
    codes = {split: {row["hexcode"] for row in rows if row["split"] == split} for split in ("validation", "test")}
    assert not codes["validation"] & codes["test"]
    assert len(codes["test"]) == pytest.approx(2 * len(codes["validation"]), rel=0.02)


def test_each_row_is_complete(rows):
    for row in rows:
        assert row["captions"][0] == row["caption"]
        assert 1 <= len(row["captions"]) <= 5 and len(set(row["captions"])) == len(row["captions"])
        assert row["keywords"] and row["group"] and row["subgroup"]
    with Image.open(io.BytesIO(rows[0]["image"]["bytes"])) as image:
        assert image.size == (96, 96)


def test_one_split_at_a_time(rows):
    assert read_sample("test").to_pylist() == [row for row in rows if row["split"] == "test"]


def test_datasets_sees_images(tmp_path):
    loaded = datasets.Dataset.from_parquet(str(SAMPLE_PATH), cache_dir=str(tmp_path))
    assert loaded[0]["image"].size == (96, 96)


@pytest.fixture
def inputs(tmp_path, encode_small) -> tuple[Path, Path]:
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    records = []
    for vendor in ("twemoji", "fluent", "noto"):
        for code, caption in (("1f600", "grin"), ("2764", "red heart"), ("1f46a", "family: a, b"), ("1f601", "beam")):
            name = f"{vendor}_{code}.jpg"
            (drawings / name).write_bytes(encode_small)
            records.append(
                {
                    "file_name": name,
                    "caption": caption,
                    "captions": [caption, "not to be used"],
                    "keywords": ["x"],
                    "group": "g",
                    "subgroup": "s",
                    "vendor": vendor,
                    "hexcode": code,
                    "emoji": "e",
                }  # fmt: skip
            )
    (drawings / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    shortcodes = tmp_path / "emojibase" / "en" / "shortcodes"
    shortcodes.mkdir(parents=True)
    for name in ("emojibase", "emojibase-legacy", "github", "iamcal"):
        (shortcodes / f"{name}.json").write_text(
            json.dumps({"2764-FE0F": ["heart", "red_heart"], "1F600": "big-grin"})
        )
    return drawings, tmp_path / "emojibase"


@pytest.fixture(scope="module")
def encode_small() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_building_is_deterministic_and_uses_the_allowed_texts_alone(inputs, tmp_path):
    outputs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for output in outputs:
        main([*map(str, inputs), str(output)])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    rows = datasets.Dataset.from_parquet(str(outputs[0]), cache_dir=str(tmp_path)).remove_columns("image")
    assert [(row["vendor"], row["hexcode"]) for row in rows if row["split"] == "train"] == [
        ("noto", "1f600"),
        ("noto", "1f601"),
        ("noto", "2764"),
    ]
    assert {row["vendor"] for row in rows} == {"noto", "fluent"}
    captions = {row["hexcode"]: row["captions"] for row in rows}
    assert captions == {"1f600": ["grin", "big grin"], "1f601": ["beam"], "2764": ["red heart", "heart"]}


def test_names_are_words_without_repeats(inputs):
    assert read_names(inputs[1]) == {"2764": ["heart", "red heart"], "1f600": ["big grin"]}


def test_a_third_of_each_group_is_for_validation():
    records = [{"hexcode": f"{number:x}", "group": "ab"[number % 2]} for number in range(60)]
    splits = assign_splits(records)
    for group in "ab":
        names = [splits[record["hexcode"]] for record in records if record["group"] == group]
        assert names.count("validation") == 10 and names.count("test") == 20
