from __future__ import annotations

import pytest
import torch

from mmhf.data.augment import build_augmentation
from mmhf.data.bad_examples import BadExample, BadExampleLog
from mmhf.data.caption_collators import CaptioningCollator, ContrastiveCollator
from mmhf.data.caption_datasets import CaptionDataset
from mmhf.errors import InputError
from mmhf.recipe.augment_sections import AugmentSection


class PaddingProcessor:
    """Letters as tokens, closed by 0 and padded by 0; mean colour as pixels."""

    def __call__(self, *, images, text):
        length = max(map(len, text)) + 1
        tokens = [[ord(letter) for letter in words] + [0] for words in text]
        return {
            "pixel_values": torch.stack([torch.tensor(image.resize((1, 1)).getpixel((0, 0))) for image in images]),
            "input_ids": torch.tensor([row + [0] * (length - len(row)) for row in tokens]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens]),
        }


@pytest.fixture
def rows(tmp_path, encode, load_captions):
    """Three images of which the second breaks when it is decoded."""
    for name, colour in {"0": "red", "1": "blue", "2": "white"}.items():
        (tmp_path / f"{name}.jpg").write_bytes(encode(colour))
    (tmp_path / "t.jsonl").write_text(
        "\n".join(f'{{"image": "{n}.jpg", "caption": ["{"abc"[: n + 1]}"]}}' for n in range(3))
    )
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    data = load_captions(source="table", train=str(tmp_path / "t.jsonl"))
    assert len(data.splits["train"]) == 3  # it begins and ends as a JPEG
    return CaptionDataset(data.splits["train"]).__getitems__(range(3))


def test_labels_are_the_tokens_with_the_end_and_without_padding(rows):
    batch = CaptioningCollator(PaddingProcessor(), on_bad_image="blank")(rows)
    assert batch["labels"].tolist() == [[97, 0, -100, -100], [97, 98, 0, -100], [97, 98, 99, 0]]
    assert batch["input_ids"].shape == batch["labels"].shape and "image_index" not in batch
    assert batch["pixel_values"][1].tolist() == [255, 255, 255]


def test_a_broken_image_teaches_a_captioner_nothing(rows, tmp_path):
    log = BadExampleLog(tmp_path / "bad.jsonl")
    batch = CaptioningCollator(PaddingProcessor(), bad_examples=log)(rows)
    assert batch["labels"][1].tolist() == [-100] * 4 and (batch["labels"][[0, 2]] >= 0).any(1).all()
    [listed] = log.read()
    assert (listed.split, listed.row, listed.id) == ("train", 2, "1.jpg")


def test_a_broken_image_takes_part_in_no_contrast(rows):
    batch = ContrastiveCollator(PaddingProcessor())(rows)
    assert batch["image_index"].tolist() == [0, -1, 2] and "labels" not in batch
    assert ContrastiveCollator(PaddingProcessor(), on_bad_image="blank")(rows)["image_index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("collator", [CaptioningCollator, ContrastiveCollator])
def test_a_broken_image_can_stop_the_run(rows, collator):
    with pytest.raises(InputError, match=r"train row 2 \(id 1.jpg\): .* set data.on_bad_image to skip or blank"):
        collator(PaddingProcessor(), on_bad_image="raise")(rows)


def test_captions_of_one_image_have_one_index(rows, load_captions):
    table = load_captions(source="sample", wanted=["validation"]).splits["validation"]
    dataset = CaptionDataset(table, "all")
    batch = ContrastiveCollator(PaddingProcessor())(dataset.__getitems__(range(12)))
    expected = [image for image, texts in enumerate(table[:6]["captions"]) for _ in texts][:12]
    assert batch["image_index"].tolist() == expected


def test_images_change_at_random_and_captions_do_not(rows):
    augmentation = build_augmentation(AugmentSection(vertical_flip=0.5, grayscale=0.5, rotation=40), 16)
    collator = CaptioningCollator(PaddingProcessor(), augmentation=augmentation, seed=1)
    batches = [collator([{**row, "epoch": epoch} for row in rows]) for epoch in (0, 0, 1, 2, 3)]
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert any(not torch.equal(batches[0]["pixel_values"], batch["pixel_values"]) for batch in batches[2:])
    assert all(torch.equal(batches[0]["labels"], batch["labels"]) for batch in batches)


def test_what_a_stream_found_on_the_way_is_listed(rows, tmp_path):
    log = BadExampleLog(tmp_path / "bad.jsonl")
    fault = BadExample("train", 7, "t.tar", "the file is damaged")
    ContrastiveCollator(PaddingProcessor(), bad_examples=log)([rows[0], {**rows[2], "faults": [fault]}])
    assert log.read() == [fault]
