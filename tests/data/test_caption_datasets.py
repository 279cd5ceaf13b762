from __future__ import annotations

from collections import Counter

import datasets
import pytest
from torch.utils.data import DataLoader

from mmhf.data.caption_datasets import CaptionDataset, caption_number, find_long_captions
from mmhf.data.loading import load_data
from mmhf.data.samplers import SampleKey
from mmhf.data.table import CAPTION_FEATURES
from mmhf.errors import InputError


@pytest.fixture
def table() -> datasets.Dataset:
    captions = [["a0"], ["b0", "b1", "b2"], ["c0", "c1"]]
    columns = {
        "row": [11, 12, 13],
        "id": ["a", "b", "c"],
        "image": [{"path": name, "bytes": None} for name in "abc"],
        "captions": captions,
    }
    return datasets.Dataset.from_dict(columns, features=CAPTION_FEATURES)


def test_a_row_is_an_image_with_one_of_its_captions(table):
    dataset = CaptionDataset(table)
    assert len(dataset) == 3
    row = dataset[SampleKey(1, 4)]
    assert row["caption"] in row["captions"] == ["b0", "b1", "b2"]
    assert (row["image_index"], row["index"], row["epoch"], row["stage"], row["id"]) == (1, 1, 4, 0, "b")
    assert dataset[0]["caption"] == "a0" and dataset[-1]["id"] == "c"


def test_in_as_many_epochs_as_there_are_captions_each_comes_once(table):
    dataset = CaptionDataset(table)
    for turn in range(3):
        drawn = [dataset[SampleKey(1, epoch)]["caption"] for epoch in range(3 * turn, 3 * turn + 3)]
        assert sorted(drawn) == ["b0", "b1", "b2"]


def test_the_choice_is_a_matter_of_seed_epoch_and_image_alone_and_even():
    assert [caption_number(7, epoch, 5, seed=1) for epoch in range(9)] == [
        caption_number(7, epoch, 5, seed=1) for epoch in range(9)
    ]
    assert len({tuple(caption_number(image, epoch, 5) for epoch in range(5)) for image in range(50)}) > 20
    assert len({tuple(caption_number(image, 0, 5, seed=seed) for image in range(10)) for seed in range(5)}) == 5
    first = Counter(caption_number(image, 0, 5) for image in range(5000))
    assert all(850 < count < 1150 for count in first.values()) and len(first) == 5


def test_every_caption_is_a_row(table):
    dataset = CaptionDataset(table, "all")
    rows = dataset.__getitems__(range(6))
    assert [row["caption"] for row in rows] == ["a0", "b0", "b1", "b2", "c0", "c1"]
    assert [row["image_index"] for row in rows] == [0, 1, 1, 1, 2, 2]
    assert [row["index"] for row in rows] == list(range(6)) and len(dataset) == 6
    assert [row["image"]["path"] for row in rows] == ["a", "b", "b", "b", "c", "c"]


@pytest.mark.parametrize("captions", ["sample", "all"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_an_epoch_through_a_loader(table, captions, workers):
    dataset = CaptionDataset(table, captions, seed=3)

    def epoch(number: int) -> list[tuple[str, int]]:
        sampler = dataset.epoch_sampler(5)
        sampler.set_epoch(number)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list)
        return [(row["caption"], row["epoch"]) for batch in loader for row in batch]

    assert epoch(1) == epoch(1) and len(epoch(1)) == len(dataset) and {number for _, number in epoch(1)} == {1}
    if captions == "all":
        assert sorted(caption for caption, _ in epoch(2)) == ["a0", "b0", "b1", "b2", "c0", "c1"]


def test_rows_that_were_chosen_from_a_table_keep_their_captions(table):
    dataset = CaptionDataset(table.select([2, 1]), "all")
    assert [row["caption"] for row in dataset.__getitems__(range(5))] == ["c0", "c1", "b0", "b1", "b2"]


def test_long_captions_are_listed_with_what_becomes_of_them(table):
    def count_words(texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    long = table.map(
        lambda row: {"captions": [*row["captions"], "one two three four"] if row["id"] == "b" else row["captions"]}
    )
    assert find_long_captions(long, count_words, 4, split="train") == []
    [found] = find_long_captions(long, count_words, 3, split="train")
    assert found == ("train", 12, "b", "caption 4 has 4 tokens; it is cut at the end to 3")


@pytest.mark.parametrize("task", ["image-captioning", "contrastive"])
def test_the_sample_has_captions(caption_section, task):
    data = load_data(caption_section(source="sample"), task=task)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 1419, "validation": 464, "test": 932}
    assert data.label_names == [] and set(data.splits["test"].column_names) == {"row", "id", "image", "captions"}
    captions = {row["id"]: row["captions"] for row in data.splits["train"]}
    assert captions["noto-1f436"][0] == "dog face" and all(1 <= len(texts) <= 5 for texts in captions.values())
    wide = load_data(caption_section(source="sample", keywords=True), task=task, splits=["train"])
    assert set(wide.splits) == {"train"} and wide.splits["train"]["captions"][0][:-1] == captions["noto-0023-20e3"]
    assert data.fingerprint()["train"] != wide.fingerprint()["train"]


def test_sources_and_tasks_must_fit(caption_section, section):
    with pytest.raises(InputError, match="task 'image-classification' cannot be loaded from the source 'sample'"):
        load_data(caption_section(source="sample"), task="image-classification")
    with pytest.raises(InputError, match="task 'contrastive' cannot be loaded from the source 'sample'"):
        load_data(section(source="sample"), task="contrastive")


@pytest.fixture
def twins(tmp_path, encode, monkeypatch):
    """Four training images and two test images, of which one is a training image, too."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, colour in {"0": "red", "1": "blue", "2": "green", "3": "white", "4": "blue", "5": "black"}.items():
        (tmp_path / f"{name}.jpg").write_bytes(encode(colour))
    for split, numbers in {"train": range(4), "test": (4, 5)}.items():
        lines = [f"{n}.jpg,{'same' if n in (1, 4) else 'other'} {n % 3}" for n in numbers]
        (tmp_path / f"{split}.csv").write_text("image,caption\n" + "\n".join(lines))
    return {"source": "table", "train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}


def test_images_that_are_in_two_splits_are_found(load_captions, twins, caplog):
    data = load_captions(**twins, find_duplicates="exact")
    [pair] = data.duplicates
    assert (pair.first.id, pair.second.id, pair.crosses_splits, pair.same_label) == ("1.jpg", "4.jpg", True, True)
    assert "1 exact (1 across splits, 0 with different captions)" in caplog.text
    assert len(data.splits["train"]) == 4 and data.bad_examples == []


def test_training_images_that_are_in_another_split_can_be_left_out(load_captions, twins):
    data = load_captions(**twins, find_duplicates="exact", on_duplicate="skip_across_splits", wanted=["train"])
    assert data.splits["train"]["id"][:] == ["0.jpg", "2.jpg", "3.jpg"] and set(data.splits) == {"train"}
    assert [(bad.id, bad.reason) for bad in data.bad_examples] == [("1.jpg", "the image is in test, too, as 4.jpg")]
