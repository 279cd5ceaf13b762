"""What is found in the layouts that people have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from small_data import picture, write_csv, write_lines, write_tar

from mmhf.data.discovery import look_at
from mmhf.data.discovery.findings import Finding, typical_side
from mmhf.errors import InputError


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finding]:
    monkeypatch.chdir(tmp_path)

    def run(data: str, **options: Any) -> Finding:
        return look_at(data, ask=lambda _, answers: answers[0], derived=Path("made.jsonl"), **options)

    return run


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_paths(kind, rows, look, tmp_path):
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif kind == "jsonl":
        write_lines(path, rows)
    else:
        write_csv(path, rows, "\t" if kind == "tsv" else ",")
    finding = look(path.name)
    assert finding.sections["image-text-classification"] == {
        "source": "table",
        "path": path.name,
        "image_root": "photos",
        "columns": {"image": "photo", "label": "kind", "text": "title"},
    }
    assert list(finding.sections) == [
        "image-text-classification", "image-classification", "contrastive", "image-captioning",
    ]  # fmt: skip
    assert finding.classes == {"bird": 14, "frog": 13, "house": 13} and finding.rows == 40 and finding.side == 40


def test_images_inside_a_table(look, tmp_path):
    frame = pd.DataFrame(
        {"picture": [{"bytes": picture(n), "path": None} for n in range(30)], "y": [n % 2 for n in range(30)]}
    )
    frame.to_parquet(tmp_path / "data.parquet")
    finding = look("data.parquet")
    assert finding.sections == {
        "image-classification": {
            "source": "table",
            "path": "data.parquet",
            "columns": {"image": "picture", "label": "y"},
        }
    }
    assert finding.rows == 30 and finding.side == 40


def test_ids_that_lack_an_ending(images, look, tmp_path):
    names = [name.removesuffix(".jpg") for name in images("jpegs", 30)]
    write_csv(tmp_path / "data.csv", [{"image_id": f"{name}", "dx": "ab"[n % 2]} for n, name in enumerate(names)])
    finding = look("data.csv")
    assert finding.sections["image-classification"]["path"] == "made.jsonl"
    first = json.loads(finding.derived.splitlines()[0])
    assert first == {"image_id": "000", "dx": "a", "image_file": "000.jpg"}


def test_splits_of_files_and_columns(rows, look, tmp_path):
    for name in ("train", "val", "test"):
        write_csv(tmp_path / f"my_{name}.csv", rows)
    section = look("my_train.csv").sections["image-classification"]
    assert {key: section[key] for key in ("train", "validation", "test")} == {
        "train": "my_train.csv", "validation": "my_val.csv", "test": "my_test.csv",
    }  # fmt: skip
    assert look(str(tmp_path)).sections["image-classification"].keys() == section.keys()
    write_csv(tmp_path / "one.csv", [{**row, "split": ("train", "dev")[n % 4 == 0]} for n, row in enumerate(rows)])
    assert look("one.csv").sections["image-classification"]["split_column"] == "split"


def test_a_test_file_without_labels_is_left_out(rows, look, tmp_path):
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", [{key: row[key] for key in ("id", "photo", "title")} for row in rows])
    finding = look("train.csv")
    assert "test" not in finding.sections["image-classification"]
    assert any("test.csv: has no column kind" in line for line in finding.saw)


def test_patients_stay_together_and_rare_classes_out(rows, look, tmp_path):
    changed = [{**row, "patient_id": f"p{n // 3}"} for n, row in enumerate(rows)]
    changed[0]["kind"] = "whale"
    section = look(str(write_csv(tmp_path / "data.csv", changed))).sections["image-classification"]
    assert section["split"] == {"group_by": "patient_id"}
    assert section["filters"] == {"min_samples_per_label": 3, "min_samples_per_split": 0}


@pytest.mark.parametrize(
    ("column", "values", "options", "expected"),
    [
        ("tags", lambda n: ["dog;beach", "beach", "dog ; night"][n % 3], {}, {"multi_label": {"separator": ";"}}),
        ("tags", lambda n: ["dog|beach", "beach|night", ""][n % 3], {},
         {"multi_label": {"separator": "|", "empty": "none"}}),
        ("seen", lambda n: ["dog, beach", "beach, night"][n % 2], {"label": "seen"},
         {"multi_label": {"separator": ","}}),
        ("target", lambda n: n / 7, {}, {"regression": {}}),
        ("age", lambda n: 18 + n, {"label": "age"}, {"regression": {}}),
        ("age", lambda n: "" if n == 3 else 18 + n, {"label": "age"}, {"regression": {}, "on_bad_row": "skip"}),
        ("label", lambda n: n % 15, {}, {}),
        ("label", lambda n: ["bird", "frog", ""][n % 3], {}, {}),
        ("stage", lambda n: n % 4, {"label": "stage"}, {}),
    ],
)  # fmt: skip
def test_several_labels_and_numbers_are_seen_in_their_column(column, values, options, expected, rows, look, tmp_path):
    changed = [{**{key: row[key] for key in ("photo", "title")}, column: values(n)} for n, row in enumerate(rows)]
    finding = look(str(write_csv(tmp_path / "data.csv", changed)), **options)
    section = finding.sections["image-classification"]
    assert section["columns"]["label"] == column
    assert {key: section[key] for key in ("multi_label", "regression", "on_bad_row") if key in section} == expected
    assert finding.target == next(iter(expected), "classes")
    assert "None" not in finding.classes, "a cell without a value is no class"
    if finding.target == "multi_label":
        assert finding.classes.keys() == {"dog", "beach", "night"}


def test_lists_of_tags_are_several_labels_and_rare_ones_are_left_out(rows, look, tmp_path):
    tags = [["dog", "beach"], ["beach"], []]
    changed = [{"photo": row["photo"], "tags": tags[n % 3] + ["whale"] * (n == 1)} for n, row in enumerate(rows)]
    finding = look(str(write_lines(tmp_path / "data.jsonl", changed)))
    section = finding.sections["image-classification"]
    assert section["multi_label"] == {"empty": "none", "names": ["beach", "dog"], "others": "ignore"}
    assert list(finding.sections) == ["image-classification"], "the lists are no captions"


def test_columns_that_could_be_read_besides_are_named(rows, look, tmp_path):
    def facts(n: int) -> dict[str, Any]:
        sex = "fm"[n % 2]
        return {"age": 20 + n % 17, "sex": sex, "patient_id": f"p{n // 2}", "label_2": n % 2, "note": f"note {n}"}

    changed = [{**row, **facts(n)} for n, row in enumerate(rows)]
    finding = look(str(write_csv(tmp_path / "data.csv", changed)), label="kind")
    assert finding.columns == {"numbers": ["price", "age"], "categories": ["sex"]}


def test_two_readings_are_asked_for(rows, tmp_path):
    path = write_csv(
        tmp_path / "data.csv", [{**row, "label_a": n % 2, "label_b": n % 4} for n, row in enumerate(rows)]
    )
    asked: list[Sequence[str]] = []

    def ask(question: str, answers: Sequence[str]) -> str:
        asked.append(answers)
        return answers[-1]

    finding = look_at(str(path), ask=ask, derived=tmp_path / "made.jsonl")
    assert ["label_a", "label_b"] in asked
    assert finding.sections["image-classification"]["columns"]["label"] == "label_b"
    named = look_at(str(path), ask=ask, derived=tmp_path / "made.jsonl", label="kind")
    assert named.sections["image-classification"]["columns"]["label"] == "kind"


@pytest.mark.parametrize("layout", ["classes", "splits", "train and test"])
def test_class_folders(layout, images, look, tmp_path):
    tops = {"classes": [""], "splits": ["train", "valid", "test"], "train and test": ["train", "test"]}[layout]
    for top in tops:
        images(f"data/{top}/frog", 6)
        images(f"data/{top}/bird", 5)
    finding = look("data")
    section = finding.sections["image-classification"]
    assert section["source"] == "image_folder" and finding.classes == {"frog": 6, "bird": 5}
    assert section.get("split") == ({"validation": 0.1, "test": 0.0} if layout == "train and test" else None)
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    assert look("packed.zip").classes == finding.classes


def test_captioned_folders(images, look, tmp_path):
    names = images("data", 20)
    write_lines(
        tmp_path / "data" / "metadata.jsonl", [{"file_name": n, "caption": f"a drawing of {n[:3]}"} for n in names]
    )
    section = look("data").sections["contrastive"]
    assert section == {"source": "table", "path": "data", "columns": {"image": "file_name", "captions": "caption"}}


def test_text_files_beside_images(images, look, tmp_path):
    for name in images("data/sub", 20):
        (tmp_path / "data" / "sub" / name.replace(".jpg", ".txt")).write_text(f"a drawing\n\nof {name}\n")
    finding = look("data")
    assert finding.sections["contrastive"]["image_root"] == "data"
    assert json.loads(finding.derived.splitlines()[3]) == {
        "file_name": "sub/003.jpg",
        "captions": ["a drawing", "of 003.jpg"],
    }


def test_fakeddit_and_flickr30k(fakeddit_dir, images, look, tmp_path):
    finding = look(str(fakeddit_dir))
    assert finding.sections == {"image-text-classification": {"source": "fakeddit", "path": str(fakeddit_dir)}}
    assert finding.classes == {"fake": 16, "true": 16}
    lines = [f"{name}| {n}| a boat" for name in images("flickr/images", 10) for n in range(5)]
    (tmp_path / "flickr" / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))
    assert look("flickr").sections["image-captioning"] == {"source": "flickr30k", "path": "flickr"}


@pytest.mark.parametrize("caption", ["txt", "json"])
def test_tars(caption, look, tmp_path):
    text = {"txt": b"a boat", "json": b'{"caption": "a boat", "url": "x"}'}[caption]
    for shard in range(3):
        members = {
            f"{shard}{n}.{end}": picture(n) if end == "jpg" else text for n in range(4) for end in ("jpg", caption)
        }
        write_tar(tmp_path / f"shard-{shard:03}.tar", members)
    section = look(str(tmp_path)).sections["contrastive"]
    assert section["validation"].endswith("shard-002.tar") and len(section["train"]) == 2
    assert section.get("caption") == (None if caption == "txt" else "json:caption")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'["a boat"]', "no captions .*in it"), (b"{", "0.json is no JSON"), (None, "not an archive, or a damaged one")],
    ids=["a list", "cut JSON", "cut tar"],
)
def test_tars_that_cannot_be_read_are_named(content, message, look, tmp_path):
    path = tmp_path / "shard-000.tar"
    write_tar(path, {"0.jpg": picture(0), "0.json": content or b"{}"})
    if content is None:
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=message):
        look(str(tmp_path))


def test_a_data_set_on_disk(look, tmp_path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [{"bytes": picture(n), "path": None} for n in range(20)], "label": [n % 2 for n in range(20)]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(tmp_path / "saved")
    section = look("saved").sections["image-classification"]
    assert section["columns"] == {"image": "img", "label": "label"} and section["split"]["validation"] == 0.1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: "nowhere", "no such file or folder"),
        (lambda folder: (folder / "empty").mkdir() or "empty", "no table"),
        (lambda folder: (folder / "x.docx").write_text("x") and "x.docx", "not a table"),
        (lambda folder: write_csv(folder / "t.csv", [{"a": 1, "b": 2}]).name, "no column has images"),
        (lambda folder: write_csv(folder / "t.csv", [{"image": "gone.jpg", "y": 1}] * 3).name, "none of them"),
        (lambda folder: write_csv(folder / "t.csv", [{"image": "http://x/a.jpg", "y": 1}] * 3).name, "URLs"),
        (lambda folder: write_csv(folder / "t.csv", [{"image": "a.jpg"}])
         and (folder / "a.jpg").write_bytes(picture(1)) and "t.csv", "no column is a label"),
        (lambda folder: "s3://bucket/data", "docs/cloud.md"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on(make, says, look, tmp_path):
    with pytest.raises(InputError) as raised:
        look(make(tmp_path))
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_the_side_of_typical_images(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert typical_side([picture(1, 30), picture(2, 50), picture(3, 200), tmp_path / "broken.jpg"]) == 50
    assert typical_side([tmp_path / "broken.jpg"]) is None
