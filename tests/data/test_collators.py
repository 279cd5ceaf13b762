from __future__ import annotations

import logging
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from mmhf.data.augment import build_augmentation
from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.collators import ImageCollator, ImageTextCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.mixing import BatchMixer
from mmhf.data.samplers import SampleKey
from mmhf.data.table import ROW_FEATURES
from mmhf.errors import InputError
from mmhf.recipe.augment_sections import AugmentSection


@pytest.fixture
def dataset(encode) -> RowDataset:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(6)]
    columns = {
        "row": list(range(1, 7)),
        "id": list("abcdef"),
        "image": [{"path": None, "bytes": encode(picture, "PNG")} for picture in noise],
        "text": ["x" * length for length in range(6)],
        "label": [0, 1, 0, 1, 0, 1],
    }
    return RowDataset(datasets.Dataset.from_dict(columns, features=ROW_FEATURES))


@pytest.fixture(scope="module")
def augmentation():
    values = {"horizontal_flip": 0.5, "rotation": 20.0, "color_jitter": {"brightness": 0.3, "hue": 0.2}}
    return build_augmentation(AugmentSection.model_validate(values), 16)


def keys(epoch: int, *indices: int) -> list[SampleKey]:
    return [SampleKey(index, epoch) for index in indices]


def test_a_batch_has_what_the_model_takes(dataset, processor):
    batch = ImageTextCollator(processor)(dataset.__getitems__([3, 0]))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[3], [0]]


def test_a_batch_without_text_has_the_same_images(dataset, processor, augmentation):
    image_processor = CLIPImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    rows = dataset.__getitems__(keys(1, 3, 0))
    batch = ImageCollator(image_processor, augmentation=augmentation, seed=1)(rows)
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 8, 8) and batch["labels"].tolist() == [1, 0]
    seen: list[Image.Image] = []

    def remember(images, text):
        seen.extend(images)
        return processor(images=images, text=text)

    ImageTextCollator(remember, augmentation=augmentation, seed=1)(rows)
    expected = image_processor(images=seen, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)


def test_rows_without_labels_give_no_labels(dataset, processor):
    rows = [{key: value for key, value in row.items() if key != "label"} for row in dataset.__getitems__([0, 1])]
    assert "labels" not in ImageTextCollator(processor)(rows)


def test_a_sample_depends_on_seed_epoch_and_index_alone(dataset, processor, augmentation):
    collator = ImageTextCollator(processor, augmentation=augmentation, seed=1)
    pixels = collator(dataset.__getitems__(keys(2, 0, 1, 2, 3)))["pixel_values"]
    torch.manual_seed(99)
    regrouped = collator(dataset.__getitems__(keys(2, 3, 1)))["pixel_values"]
    assert torch.equal(regrouped, pixels[[3, 1]])
    other_epoch = collator(dataset.__getitems__(keys(3, 0, 1, 2, 3)))["pixel_values"]
    other_seed = ImageTextCollator(processor, augmentation=augmentation, seed=2)
    for other in (other_epoch, other_seed(dataset.__getitems__(keys(2, 0, 1, 2, 3)))["pixel_values"]):
        assert all(not torch.equal(other[number], pixels[number]) for number in range(4))


def test_global_random_state_is_untouched(dataset, processor, augmentation):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    ImageTextCollator(processor, augmentation=augmentation)(dataset.__getitems__([0, 1]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_make_the_same_batches(dataset, processor, augmentation, start):
    collator = ImageTextCollator(processor, augmentation=augmentation, seed=1)
    if start == "spawn":  # starting an interpreter takes seconds; that it could be sent there is what can go wrong
        assert torch.equal(
            pickle.loads(pickle.dumps(collator))(dataset.__getitems__([0]))["pixel_values"],
            collator(dataset.__getitems__([0]))["pixel_values"],
        )
        return
    alone = list(DataLoader(dataset, 2, sampler=keys(1, *range(6)), collate_fn=collator))
    shared = list(DataLoader(dataset, 2, sampler=keys(1, *range(6)), collate_fn=collator, num_workers=2))
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(alone, shared, strict=True))


@pytest.fixture
def broken_rows(dataset) -> list[dict]:
    rows = dataset.__getitems__([0, 1, 2])
    rows[1]["image"] = {"path": None, "bytes": rows[1]["image"]["bytes"][:60]}
    return rows


@pytest.mark.parametrize(("choice", "labels"), [("skip", [-100.0, -100.0]), ("blank", [1.0, 0.0])])
def test_several_labels_of_a_broken_image(dataset, processor, choice, labels):
    rows = dataset.__getitems__([3, 0])
    for row, several in zip(rows, ([0, 1], [1, 0]), strict=True):
        del row["label"]
        row["labels"] = several
    rows[1]["image"] = {"path": None, "bytes": b"not an image"}
    batch = ImageTextCollator(processor, on_bad_image=choice)(rows)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[0.0, 1.0], labels]


@pytest.mark.parametrize(("choice", "label"), [("skip", -100), ("blank", 1)])
def test_an_image_found_broken_late_is_white_and_listed(
    broken_rows, processor, augmentation, tmp_path, caplog, choice, label
):
    log = BadExampleLog(tmp_path / "bad.jsonl")
    collator = ImageTextCollator(
        processor, augmentation=augmentation, on_bad_image=choice, bad_examples=log, split="validation"
    )
    with caplog.at_level(logging.WARNING):
        batch = collator(broken_rows)
    assert batch["labels"].tolist() == [0, label, 0]
    assert (batch["pixel_values"][1] == 255).all()
    assert not (batch["pixel_values"][0] == 255).all()
    [example] = log.read()
    assert example[:3] == ("validation", 2, "b") and "damaged" in example.reason
    assert "validation row 2 (id b)" in caplog.text


def test_an_image_found_broken_late_can_stop_the_run(broken_rows, processor):
    with pytest.raises(InputError, match=r"train row 2 \(id b\): the image is damaged.*on_bad_image"):
        ImageTextCollator(processor, on_bad_image="raise")(broken_rows)


def test_a_blanked_image_is_white_keeps_its_label_and_is_not_listed_again(dataset, processor, augmentation, caplog):
    rows = dataset.__getitems__([1])
    rows[0]["image"] = {"path": None, "bytes": None}
    batch = ImageTextCollator(processor, augmentation=augmentation)(rows)
    assert batch["labels"].tolist() == [1]
    assert (batch["pixel_values"] == 255).all()
    assert not caplog.records


def test_a_mixer_makes_labels_probabilities_and_leaves_broken_images_out(broken_rows, processor):
    collator = ImageTextCollator(processor, mixer=BatchMixer(2, mixup=1.0, seed=1))
    plain = ImageTextCollator(processor)(broken_rows)
    batch = collator(broken_rows)
    assert batch["labels"].shape == (3, 2) and batch["labels"].dtype == torch.float32
    assert batch["labels"].sum(dim=1).tolist() == [1, 0, 1]
    assert torch.equal(batch["pixel_values"][1], plain["pixel_values"][1])
    assert torch.equal(collator(broken_rows)["pixel_values"], batch["pixel_values"])
    mixed = [collator(broken_rows[:1] + broken_rows[2:]) for _ in range(2)]
    assert torch.equal(mixed[0]["pixel_values"], mixed[1]["pixel_values"])
