"""Small tables with the columns that the data sets' authors publish."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest

from mmhf.data.loading import load_data
from mmhf.data.table import extra_column
from mmhf.errors import InputError

COUNT = 12
RANGE = range(COUNT)
TABLES = {
    "fitzpatrick17k": pd.DataFrame(
        {
            "md5hash": [f"{number:032x}" for number in RANGE],
            "fitzpatrick_scale": [-1, 1, 2, 3, 4, 5] * 2,
            "fitzpatrick_centaur": [1] * COUNT,
            "label": ["melanoma", "basal cell carcinoma"] * 6,
            "nine_partition_label": ["malignant melanoma", "malignant epidermal"] * 6,
            "three_partition_label": ["malignant"] * COUNT,
            "qc": [None, "1 Diagnostic", "3 Wrongly labelled"] * 4,
            "url": ["http://a"] * COUNT,
            "url_alphanum": ["a"] * COUNT,
        }
    ),
    "ddi": pd.DataFrame(
        {
            "Unnamed: 0": RANGE,
            "DDI_ID": range(1, COUNT + 1),
            "DDI_file": [f"{number:06d}.png" for number in range(1, COUNT + 1)],
            "skin_tone": [12, 34, 56] * 4,
            "malignant": [True, False] * 6,
            "disease": ["melanoma", "basal-cell-carcinoma"] * 6,
        }
    ),
    "isic2020": pd.DataFrame(
        {
            "image_name": [f"ISIC_{number:07d}" for number in RANGE],
            "patient_id": [f"IP_{number // 4}" for number in RANGE],
            "sex": ["male", "female", None] * 4,
            "age_approx": [45.0, None, 60.0] * 4,
            "anatom_site_general_challenge": ["torso"] * COUNT,
            "diagnosis": ["melanoma", "nevus", "nevus", "unknown"] * 3,
            "benign_malignant": ["malignant", "benign"] * 6,
            "target": [1, 0] * 6,
        }
    ),
    "ham10000": pd.DataFrame(
        {
            "lesion_id": [f"HAM_{number // 3}" for number in RANGE],
            "image_id": [f"ISIC_{number:07d}" for number in RANGE],
            "dx": ["mel", "bcc", "nv"] * 4,
            "dx_type": ["histo"] * COUNT,
            "age": [80.0, 30.0, None] * 4,
            "sex": ["male", "unknown", "female"] * 4,
            "localization": ["back"] * COUNT,
        }
    ),
    "derm1m": pd.DataFrame(
        {
            "filename": [f"pubmed/{number}.png" for number in RANGE],
            "caption": [f"A photo of case {number}." for number in range(COUNT - 1)] + ["No caption information"],
            "truncated_caption": ["A photo"] * COUNT,
            "disease_label": ["melanoma", "no definitive diagnosis", "nevus"] * 4,
            "hierarchical_disease_label": ["a, b"] * COUNT,
            "skin_concept": ["No visual concept information"] * COUNT,
            "body_location": ["No body location information"] * COUNT,
            "symptoms": ["No symptom information"] * COUNT,
            "age": ["No age information", "45-year-old", "7", "elderly"] * 3,
            "gender": ["No gender information", "Female", "male"] * 4,
            "source": ["pubmed", "youtube", "edu"] * 4,
        }
    ),
}
IMAGES = {
    "fitzpatrick17k": [f"{number:032x}.jpg" for number in RANGE],
    "ddi": list(TABLES["ddi"]["DDI_file"]),
    "isic2020": [f"ISIC_{number:07d}.jpg" for number in RANGE],
    "ham10000": [f"ISIC_{number:07d}.jpg" for number in RANGE],
    "derm1m": list(TABLES["derm1m"]["filename"]),
}


@pytest.fixture
def root(tmp_path, encode):
    for name, table in TABLES.items():
        folder = tmp_path / "v1" / name
        for image in IMAGES[name]:
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).write_bytes(encode(kind="PNG"))
        table.to_csv(folder / "metadata.csv", index=False)
    return tmp_path


def load(section, root, *names, task="image-text-classification", columns=(), **values):
    tables = {name: {"table": f"{name}/metadata.csv", "images": name} for name in names}
    given = {
        "path": str(root / "{version}"),
        "version": "v1",
        "tables": tables,
        "split": {"validation": 0.0, "test": 0.0},
        "on_bad_row": "skip",
    }
    made = section(source="clinical", **(given | values))
    return load_data(made, task=task, extra_columns=columns)


COLUMNS = ("source", "skin_type", "sex", "age", "group", "site", "dataset")
EXPECTED = {
    "fitzpatrick17k": ("fitzpatrick17k", "I-II", None, None, None, None),
    "ddi": ("ddi", "III-IV", None, None, None, None),
    "isic2020": ("isic2020", None, "female", None, "isic2020/IP_0", "torso"),
    "ham10000": ("ham10000", None, None, "30", "ham10000/HAM_0", "back"),
    "derm1m": ("youtube", None, "female", "45", None, None),
}


@pytest.mark.parametrize("name", TABLES)
def test_real_columns_become_harmonised_ones(section, root, name):
    data = load(section, root, name, columns=COLUMNS)
    rows = data.splits["train"]
    second = rows.select([rows["row"][:].index(2)])[0]
    assert tuple(second[extra_column(column)] for column in COLUMNS) == (*EXPECTED[name], name)
    assert second["image"]["path"] == str(root / "v1" / name / IMAGES[name][1])
    assert len(rows) == COUNT - (3 if name == "isic2020" else 0), "unknown diagnoses are no label"
    assert second["text"] == ("A photo of case 1." if name == "derm1m" else "")


def test_data_sets_share_their_labels(section, root):
    data = load(section, root, *TABLES)
    assert data.label_names == ["basal cell carcinoma", "melanoma", "nevus", "no definitive diagnosis"]
    ids = data.splits["train"]["id"][:]
    assert len(set(ids)) == len(ids) == 5 * COUNT - 3
    assert {name.split("/")[0] for name in ids} == set(TABLES)


def test_no_patient_or_lesion_spans_splits(section, root):
    split = {"validation": 0.25, "test": 0.25}
    data = load(section, root, *TABLES, columns=["group"], split=split)
    homes = [set(rows[extra_column("group")]) - {None} for rows in data.splits.values()]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 3 + 4
    total = Counter(label for rows in data.splits.values() for label in rows["label"])
    for rows in data.splits.values():
        share = len(rows) / sum(total.values())
        for label, count in Counter(rows["label"]).items():
            assert abs(count - share * total[label]) <= 5


def test_filters_read_harmonised_and_own_columns(section, root):
    filters = {
        "datasets": ["fitzpatrick17k", "derm1m"],
        "sub_sources": {"derm1m": ["pubmed", "youtube"]},
        "where": {"qc": ["1 Diagnostic", None], "fitzpatrick_scale": {"min": 2, "or_missing": True}},
        "min_samples_per_label": 4,
    }
    data = load(section, root, *TABLES, filters=filters)
    assert [step.rows for step in data.filter_steps] == [60, 24, 20, 16, 12, 10]
    assert data.label_names == ["melanoma", "no definitive diagnosis"]
    with_text = load(section, root, "ddi", "derm1m", filters={"has_text": True})
    assert with_text.filter_steps[-1] == ("has_text: true", COUNT - 1)


def test_another_label_and_an_image_classifier(section, root):
    tables = {
        "ddi": {"table": "ddi/metadata.csv", "images": "ddi", "label": "malignant"},
        "isic2020": {"table": "isic2020/metadata.csv", "images": "isic2020", "label": "benign_malignant"},
    }
    labels = {"true": "malignant", "malignant": "malignant", "false": "benign", "benign": "benign"}
    data = load(section, root, tables=tables, labels=labels, task="image-classification")
    assert data.label_names == ["malignant", "benign"]
    assert Counter(data.splits["train"]["label"]) == {0: COUNT, 1: COUNT}


def test_what_is_not_there(section, root):
    with pytest.raises(InputError, match=r"no table has a column 'skintype' with any value; did you mean skin_type"):
        load(section, root, "ddi", filters={"where": {"skintype": "I-II"}})
    with pytest.raises(InputError, match="data.path: no such folder: .*/v2"):
        load(section, root, "ddi", version="v2")
    table = TABLES["ham10000"].rename(columns={"lesion_id": "lesion"})
    table.to_csv(root / "v1" / "ham10000" / "metadata.csv", index=False)
    with pytest.raises(InputError, match="metadata.csv: no column 'lesion_id'; did you mean lesion"):
        load(section, root, "ham10000")
