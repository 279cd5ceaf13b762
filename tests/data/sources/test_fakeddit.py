from __future__ import annotations

import pandas as pd
import pytest

from mmhf.data.loading import load_data
from mmhf.data.sources.fakeddit import FILES
from mmhf.errors import InputError

IDS = ["a1", "nan", "1e5", "007", "gone", "empty", "noimage", "notitle"]


@pytest.fixture
def folder(tmp_path, encode):
    images = tmp_path / "public_image_set"
    images.mkdir()
    for name in IDS:
        if name not in ("gone", "noimage"):
            (images / f"{name}.jpg").write_bytes(b"" if name == "empty" else encode())
    frame = pd.DataFrame(
        {
            "Unnamed: 0": range(8),
            "clean_title": ["plain", 'he said "no"', "two\nlines", '"quoted"', "x", "y", "z", None],
            "title": [f"Title {number}" for number in range(8)],
            "hasImage": [name != "noimage" for name in IDS],
            "id": IDS,
            "subreddit": ["leak"] * 8,
            "2_way_label": [0, 1] * 4,
            "3_way_label": [0.0, 1, 2, 0, 1, 2, 0, 1],
            "6_way_label": [0, 1, 2, 3, 4, 5, 0, 1],
        }
    )
    for name in FILES.values():
        frame.to_csv(tmp_path / name, sep="\t", index=False)
    return tmp_path


def load(section, folder, **values):
    splits = values.pop("splits", None)
    return load_data(section(source="fakeddit", path=str(folder), **values), splits=splits)


def test_rows_ids_titles_and_labels(section, folder):
    data = load(section, folder)
    train = data.splits["train"]
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.label_names == ["fake", "true"]
    assert train["id"][:] == ["a1", "nan", "1e5", "007", "notitle"]
    assert train["text"][:] == ["plain", 'he said "no"', "two\nlines", '"quoted"', ""]
    assert train["label"][:] == [0, 1, 0, 1, 1]
    assert train["row"][:] == [1, 2, 3, 4, 8]
    assert train[0]["image"] == {"path": str((folder / "public_image_set" / "a1.jpg").resolve()), "bytes": None}
    assert set(train.column_names) == {"row", "id", "image", "text", "label"}


def test_each_bad_row_is_named(section, folder):
    bad = [example for example in load(section, folder).bad_examples if example.split == "test"]
    assert [(example.row, example.id) for example in bad] == [
        (5, "gone"), (6, "empty"), (7, "noimage"), (8, "notitle")
    ]  # fmt: skip
    reasons = [example.reason for example in bad]
    assert "missing: gone.jpg" in reasons[0] and "0 bytes" in reasons[1]
    assert reasons[2:] == ["hasImage is False", "the text is empty"]


@pytest.mark.parametrize(
    ("label", "names", "ids"),
    [
        ("3_way_label", ["true", "fake with true text", "fake with false text"], [0, 1, 2, 0, 1]),
        (
            "6_way_label",
            ["true", "satire", "false connection", "imposter content", "manipulated content", "misleading content"],
            [0, 1, 2, 3, 1],
        ),
    ],
)
def test_label_sets(section, folder, label, names, ids):
    data = load(section, folder, label=label, splits=["train"])
    assert data.label_names == names
    assert data.splits["train"]["label"][:] == ids


def test_the_other_title_and_blank_images(section, folder):
    data = load(section, folder, text="title", on_bad_image="blank", splits=["validation"])
    rows = data.splits["validation"]
    assert rows["text"][:] == [f"Title {number}" for number in range(8)]
    assert [image == {"path": None, "bytes": None} for image in rows["image"]] == [False] * 4 + [True] * 3 + [False]
    assert len(data.bad_examples) == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"on_bad_image": "raise"}, r"multimodal_train.tsv, row 5 \(id gone\): .*missing.*data.on_bad_image=skip"),
        ({"on_empty_text": "raise"}, r"row 8 \(id notitle\): the text is empty; data.on_empty_text=skip"),
    ],
)
def test_a_bad_row_can_stop_the_run(section, folder, choices, message):
    with pytest.raises(InputError, match=message):
        load(section, folder, **choices)


def test_a_label_outside_the_map(section, folder):
    path = folder / FILES["test"]
    path.write_text(path.read_text().replace("\t0\t0.0\t0\n", "\t7\t0.0\t0\n"))
    with pytest.raises(InputError, match=r"multimodal_test_public.tsv, row 1 \(id a1\): unknown label '7'"):
        load(section, folder)
    data = load(section, folder, on_bad_row="skip")
    assert (1, "a1", "unknown label '7'") in [example[1:] for example in data.bad_examples]
    assert "a1" not in data.splits["test"]["id"][:]


def test_an_id_cannot_leave_the_image_folder(section, folder, encode):
    (folder / "secret.jpg").write_bytes(encode())
    path = folder / FILES["train"]
    path.write_text(path.read_text().replace("\ta1\t", "\t../secret\t"))
    data = load(section, folder, on_bad_row="skip", on_bad_image="blank", splits=["train"])
    assert data.bad_examples[0][:3] == ("train", 1, "../secret")
    assert "leaves the data folder" in data.bad_examples[0].reason
    assert "../secret" not in data.splits["train"]["id"][:]


def test_what_is_missing_is_named(section, folder, tmp_path):
    path = folder / FILES["train"]
    text = path.read_text()
    path.write_text(text.replace("2_way_label", "2way_label"))
    with pytest.raises(InputError, match="multimodal_train.tsv: no column '2_way_label'; did you mean 2way_label"):
        load(section, folder)
    path.write_text(text.split("\n")[0] + "\n")
    with pytest.raises(InputError, match="the split 'train' has no rows"):
        load(section, folder)
    path.unlink()
    assert list(load(section, folder).splits) == ["validation", "test"]
    with pytest.raises(InputError, match=r"multimodal_train.tsv: no such file"):
        load(section, folder, splits=["train"])
    with pytest.raises(InputError, match="no such folder"):
        load(section, tmp_path / "absent")
    with pytest.raises(InputError, match="no image folder pictures"):
        load(section, folder, image_dir="pictures")
