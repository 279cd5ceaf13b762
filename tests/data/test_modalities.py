from __future__ import annotations

import datasets
import pytest
import torch

from mmhf.data.bad_examples import BadExampleLog
from mmhf.data.collators import ImageTextCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.modalities import ModalityMasking
from mmhf.data.samplers import SampleKey
from mmhf.data.table import NO_IMAGE, ROW_FEATURES
from mmhf.errors import InputError


class SeenBy:
    """A processor that keeps what it was given."""

    def __call__(self, *, images=None, text=None, columns=None, masks=False):
        self.images, self.text, self.columns = images, text, columns
        return {"seen": torch.zeros(1)}


@pytest.fixture
def rows(encode) -> RowDataset:
    """Row 0 has both, 1 no image, 2 no text, 3 neither, 4 a broken image and a text, 5 a broken image and no text."""
    good, broken = {"path": None, "bytes": encode()}, {"path": None, "bytes": b"broken"}
    columns = {
        "row": list(range(1, 7)),
        "id": list("abcdef"),
        "image": [good, NO_IMAGE, good, NO_IMAGE, broken, broken],
        "text": ["a", "b", "", "", "e", ""],
        "label": [1] * 6,
    }
    return RowDataset(datasets.Dataset.from_dict(columns, features=ROW_FEATURES))


MISSING = {"missing_image": True, "missing_text": True}


def seen(rows: RowDataset, masking: ModalityMasking, keys, **options) -> tuple[list[str], list[int]]:
    """What the model sees of each row, `it` being both, and the labels."""
    processor = SeenBy()
    batch = ImageTextCollator(processor, masking=masking, **options)(rows.__getitems__(keys))
    size = len(keys)
    images, texts = processor.images or [None] * size, processor.text or [None] * size
    columns = processor.columns or [None] * size
    shown = [
        ("i" if image is not None else "") + ("t" if text is not None else "") + ("c" if values is not None else "")
        for image, text, values in zip(images, texts, columns, strict=True)
    ]
    return shown, batch["labels"].tolist()


def test_what_is_missing_is_not_seen_and_rows_with_neither_do_not_count(rows, tmp_path):
    log = BadExampleLog(tmp_path / "bad.log")
    shown, labels = seen(rows, ModalityMasking(**MISSING), range(6), on_bad_image="mask", bad_examples=log)
    assert shown == ["it", "t", "i", "", "t", ""]
    assert labels == [1, 1, 1, -100, 1, -100]
    reasons = {example.row: example.reason for example in log.read()}
    assert set(reasons) == {4, 5, 6} and reasons[4] == "neither image nor text is left"


def test_the_other_policies_hold_beside_masks(rows):
    hiding = ModalityMasking(drop_text=0.01)
    assert seen(rows, hiding, [0, 4], on_bad_image="skip") == (["it", "it"], [1, -100])
    assert seen(rows, hiding, [0, 4], on_bad_image="blank") == (["it", "it"], [1, 1])
    with pytest.raises(InputError, match="row 5"):
        seen(rows, hiding, [4], on_bad_image="raise")


@pytest.mark.parametrize(("hidden", "shown"), [("image", ["t", "t", "t"]), ("text", ["i", "i", "i"])])
def test_a_hidden_modality_is_hidden_in_all_rows(rows, hidden, shown):
    assert seen(rows, ModalityMasking(mask=hidden), [0, 2, 0])[0] == shown


def test_a_row_of_which_nothing_is_left_by_a_mask_does_not_count(rows):
    assert seen(rows, ModalityMasking(mask="image", **MISSING), [0, 2]) == (["t", ""], [1, -100])


def test_shares_of_dropped_modalities_are_met_and_never_both(rows):
    masking = ModalityMasking(drop_image=0.3, drop_text=0.5)
    keys = [SampleKey(0, epoch) for epoch in range(2000)]
    shown, labels = seen(rows, masking, keys)
    shares = {kind: shown.count(kind) / len(shown) for kind in ("it", "i", "t", "")}
    assert shares == pytest.approx({"it": 0.2, "i": 0.5, "t": 0.3, "": 0.0}, abs=0.04)
    assert set(labels) == {1}


def test_only_rows_with_both_lose_one(rows):
    masking = ModalityMasking(drop_image=0.5, drop_text=0.5, **MISSING)
    for epoch in range(20):
        keys = [SampleKey(index, epoch) for index in (1, 2, 4)]
        shown, labels = seen(rows, masking, keys, on_bad_image="mask")
        assert shown == ["t", "i", "t"] and labels == [1, 1, 1]


def test_draws_depend_on_seed_epoch_row_and_repetition_alone(rows):
    masking = ModalityMasking(drop_image=0.4, drop_text=0.4)
    keys = [SampleKey(0, epoch, draw) for epoch in range(40) for draw in range(2)]
    torch.manual_seed(1)
    first = seen(rows, masking, keys, seed=3)[0]
    torch.manual_seed(2)
    again = [seen(rows, masking, [key], seed=3)[0][0] for key in reversed(keys)]
    assert first == again[::-1] != seen(rows, masking, keys, seed=4)[0]
    assert first[::2] != first[1::2]


def test_images_that_are_dropped_are_not_decoded(rows, monkeypatch):
    monkeypatch.setattr("mmhf.data.collators.decode_pixels", lambda image: pytest.fail("decoded"))
    assert seen(rows, ModalityMasking(drop_image=1.0), [0, 4])[0] == ["t", "t"]


@pytest.fixture
def rows_with_columns(rows) -> RowDataset:
    return RowDataset(rows.table.add_column("extra.age", ["50", None, "7", "8", "9", "10"]))


def test_columns_are_given_as_the_row_has_them(rows_with_columns):
    processor = SeenBy()
    ImageTextCollator(processor, columns=["age"])(rows_with_columns.__getitems__([0, 1]))
    assert processor.columns == [{"age": "50"}, {"age": None}]
    assert seen(rows_with_columns, ModalityMasking(mask="columns"), [0, 1], columns=["age"])[0] == ["it", "it"]


def test_a_row_loses_at_most_one_of_three(rows_with_columns):
    masking = ModalityMasking(drop_image=0.3, drop_text=0.2, drop_columns=0.1)
    keys = [SampleKey(0, epoch) for epoch in range(2000)]
    shown, labels = seen(rows_with_columns, masking, keys, columns=["age"])
    shares = {kind: shown.count(kind) / len(shown) for kind in ("itc", "tc", "ic", "it")}
    assert shares == pytest.approx({"itc": 0.4, "tc": 0.3, "ic": 0.2, "it": 0.1}, abs=0.04)
    assert set(labels) == {1}


def test_columns_stay_beside_what_is_missing_and_make_no_row_of_their_own(rows_with_columns):
    masking = ModalityMasking(drop_columns=1.0, **MISSING)
    shown, labels = seen(rows_with_columns, masking, range(6), on_bad_image="mask", columns=["age"])
    # Of a broken image nothing is dropped, and without image and text columns do not count.
    assert shown == ["it", "t", "i", "c", "tc", "c"] and labels == [1, 1, 1, -100, 1, -100]
    dropped = seen(rows_with_columns, ModalityMasking(mask="text", drop_image=1.0), [0, 2], columns=["age"])
    assert dropped == (["c", "c"], [1, 1])
