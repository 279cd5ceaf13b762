from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmhf.errors import InputError
from mmhf.evaluation.captions.caption_files import read_caption_files

RESULTS = [{"image_id": 7, "caption": "a dog runs"}, {"image_id": 3, "caption": ""}]
ANNOTATIONS = {
    "images": [{"id": 3, "file_name": "three.jpg"}, {"id": 7, "file_name": "seven.jpg"}, {"id": 9}],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "a cat"},
        {"id": 2, "image_id": 7, "caption": "the dog"},
        {"id": 3, "image_id": 7, "caption": " a dog runs "},
        {"id": 4, "image_id": 7, "caption": ""},
        {"id": 5, "image_id": 9, "caption": "a bird"},
    ],
}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_coco_results_are_joined_with_coco_annotations(tmp_path):
    read = read_caption_files(write_json(tmp_path / "r.json", RESULTS), write_json(tmp_path / "a.json", ANNOTATIONS))
    assert read.ids == ["7", "3"]
    assert read.images == ["seven.jpg", "three.jpg"]
    assert read.predictions == ["a dog runs", ""]
    assert read.references == [["the dog", "a dog runs"], ["a cat"]]
    assert (read.num_unused, read.num_empty_references) == (1, 1)


def test_captions_by_id_are_joined(tmp_path):
    predictions = write_json(tmp_path / "p.json", {"x": ["a dog"], "y": "a cat"})
    read = read_caption_files(predictions, write_json(tmp_path / "r.json", {"y": ["cat", "puss"], "x": "dog"}))
    assert dict(zip(read.ids, read.references, strict=True)) == {"x": ["dog"], "y": ["cat", "puss"]}
    assert read.predictions == ["a dog", "a cat"]


def test_one_csv_has_predictions_and_a_json_list_or_numbered_references(tmp_path):
    listed = [
        ["image", "caption", "references"],
        ["a.jpg", "狗 🐶", '["a dog", "dog, running"]'],
        ["b.jpg", "", "[x] cat"],
    ]
    read = read_caption_files(write_csv(tmp_path / "p.csv", listed))
    assert read.references == [["a dog", "dog, running"], ["[x] cat"]]
    assert (read.predictions, read.images) == (["狗 🐶", ""], ["a.jpg", "b.jpg"])
    numbered = [["prediction", "caption_1", "caption_2"], ["dog", "a dog", ""], ["cat", "a cat", "cats"]]
    read = read_caption_files(write_csv(tmp_path / "n.csv", numbered))
    assert read.references == [["a dog"], ["a cat", "cats"]]
    assert (read.ids, read.num_empty_references) == (["1", "2"], 0)


def test_a_table_of_mmhf_predict_is_read_as_it_is(tmp_path):
    rows = [["file_name", "input_caption", "caption"], ["a.jpg", "the dog", "a dog"]]
    read = read_caption_files(write_csv(tmp_path / "p.csv", rows))
    assert (read.predictions, read.references) == (["a dog"], [["the dog"]])


def test_parquet_lists_and_json_lines_rows_are_joined(tmp_path):
    lines = [{"file_name": "b.jpg", "generated": "a cat"}, {"file_name": "a.jpg", "generated": "a dog"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    table = pa.table({"file_name": ["a.jpg", "b.jpg"], "captions": [["dog", "a dog"], ["cat"]]})
    pq.write_table(table, tmp_path / "r.parquet")
    read = read_caption_files(tmp_path / "p.jsonl", tmp_path / "r.parquet")
    assert read.references == [["cat"], ["dog", "a dog"]]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (
            [*RESULTS, {"image_id": 7, "caption": "again"}],
            ANNOTATIONS,
            "row 3: image '7' has a prediction on row 1 too",
        ),
        ([{"image_id": 4, "caption": "a"}, *RESULTS], ANNOTATIONS, "1 of 3 images have no reference, such as '4'"),
        ([{"image_id": None, "caption": "a"}], ANNOTATIONS, "row 1: column 'image_id' is empty"),
        ([{"image_id": 3, "caption": ["a", "b"]}], ANNOTATIONS, "row 1: 2 captions in column 'caption'"),
        (
            [{"image_id": 3, "text": "a"}],
            ANNOTATIONS,
            "no column with captions that were generated; expected prediction",
        ),
        ([{"picture": 3, "caption": "a"}], ANNOTATIONS, "no column with the image's name; expected image_id"),
        (RESULTS, [{"image_id": 3, "words": "a"}], "no column with references; expected references"),
        ([], ANNOTATIONS, "the table has no rows"),
        ("text", ANNOTATIONS, "expected a list of objects"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, predictions, references, message):
    files = write_json(tmp_path / "p.json", predictions), write_json(tmp_path / "r.json", references)
    with pytest.raises(InputError) as caught:
        read_caption_files(*files)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_or_absent_is_named(tmp_path):
    broken = tmp_path / "p.json"
    broken.write_text("[{", encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        read_caption_files(broken)
    with pytest.raises(InputError, match="No such file"):
        read_caption_files(tmp_path / "absent.json")
    (tmp_path / "p.jsonl").write_text('{"caption": "a", "references": ["b"]}\nnonsense\n', encoding="utf-8")
    with pytest.raises(InputError, match="row 2: not JSON"):
        read_caption_files(tmp_path / "p.jsonl")
