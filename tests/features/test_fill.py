"""A feature has the same bits whatever is computed with it, by whom, and after which kill."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from mmhf.data.collators import ImageCollator, ImageTextCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.digests import NO_IMAGE_DIGEST, digest_texts
from mmhf.data.table import NO_IMAGE
from mmhf.errors import InputError
from mmhf.features import fill
from mmhf.features.column import FeatureColumn
from mmhf.features.fill import Filler, Source, find_lacking
from mmhf.features.parts import TEXT, VISION, FeaturePart
from mmhf.features.store import FeatureLayout, FeatureStore
from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.image_classifier import BackboneForImageClassification, BackboneForImageClassificationConfig


def png(number: int) -> dict[str, Any]:
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def rows(images: Sequence[dict[str, Any]]) -> RowDataset:
    image = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    numbers = list(range(len(images)))
    columns = {"row": numbers, "id": list(map(str, numbers)), "image": images, "label": [0] * len(images)}
    integer = datasets.Value("int64")
    features = {"row": integer, "id": datasets.Value("string"), "image": image, "label": integer}
    return RowDataset(datasets.Dataset.from_dict(columns, features=datasets.Features(features)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels round by the number of threads, and a forked process can only use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_timm: Any) -> BackboneForImageClassification:
    torch.manual_seed(0)
    config = BackboneForImageClassificationConfig(vision_config=tiny_timm("test_resnet"), id2label={0: "a", 1: "b"})
    return BackboneForImageClassification(config)


@pytest.fixture
def collator() -> ImageCollator:
    square = {"height": 32, "width": 32}
    return ImageCollator(CLIPImageProcessor(size=square, crop_size=square))


def fill_store(model: Any, folder: Path, sources: Sequence[Source], part: FeaturePart = VISION) -> FeatureColumn:
    """Fill a store with all that is lacking of data sets, as a process would; gives the last one's column."""
    width = (model.config.vision_output if part is VISION else model.config.text_output)["width"]
    store = FeatureStore(folder, FeatureLayout((width,), torch.float32))
    content = "image" if part is VISION else "text"
    columns = [
        FeatureColumn(part.feature, content, store, torch.float32, each.dataset.digests(content)) for each in sources
    ]
    lacking = find_lacking(columns)
    filled = Filler(model, with_bar=False).fill(part, store, lacking, sources)
    for column in columns:
        column.add_faults(filled.faults)
        column.bind()
    return columns[-1]


def read(column: FeatureColumn) -> Tensor:
    every = np.arange(len(column.digests))
    return column.read(every, np.zeros((len(every), 3), dtype=np.int64))


IMAGES = [png(number) for number in [*range(21), 3, 3]]


@pytest.fixture
def whole(model: Any, collator: ImageCollator, tmp_path: Path) -> Tensor:
    """The features of `IMAGES`, computed in one go."""
    return read(fill_store(model, tmp_path / "whole", [Source(rows(IMAGES), collator, True)]))


def test_in_two_goes_and_in_another_order(model, collator, whole, tmp_path):
    few = [IMAGES[number] for number in (17, 3, 8, 4)]
    fill_store(model, tmp_path / "two", [Source(rows(few), collator, False)])
    turned = fill_store(model, tmp_path / "two", [Source(rows(IMAGES[::-1]), collator, True)])
    assert torch.equal(read(turned).flip(0), whole)
    assert len(turned.store) == 21, "each distinct image once"


def test_several_data_sets_in_one_pass(model, collator, whole, tmp_path):
    sources = [Source(rows(IMAGES[:9]), collator, True), Source(rows(IMAGES), collator, False)]
    column = fill_store(model, tmp_path / "several", sources)
    assert torch.equal(read(column), whole) and len(column.store) == 21


def test_two_processes_share_the_batches(model, collator, whole, tmp_path, monkeypatch):
    source = Source(rows(IMAGES), collator, True)
    monkeypatch.setattr(fill, "world_size", lambda: 2)
    monkeypatch.setattr(fill, "broadcast_object_list", lambda values: values)
    stored = []
    for number in range(2):
        monkeypatch.setattr(fill, "rank", lambda number=number: number)
        folder = tmp_path / "shared" / str(number)  # each sees none of the other's until both are done
        stored.append(fill_store(model, folder, [source]).store)
    assert [len(store) for store in stored] == [13, 8], "batches of 8 in turn"
    for path in (tmp_path / "shared" / "1").glob("*.*s"):
        path.rename(tmp_path / "shared" / "0" / path.name)
    monkeypatch.undo()
    assert torch.equal(read(fill_store(model, tmp_path / "shared" / "0", [source])), whole)


def test_after_a_kill(model, collator, whole, tmp_path):
    source = Source(rows(IMAGES), collator, True)

    def die_in_the_second_batch() -> None:
        append, calls = FeatureStore.append, []

        def counted(store: FeatureStore, *args: Any) -> Any:
            calls.append(None)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return append(store, *args)

        FeatureStore.append = counted  # type: ignore[method-assign]
        fill_store(model, tmp_path / "killed", [source])

    process = multiprocessing.get_context("fork").Process(target=die_in_the_second_batch)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = FeatureStore(tmp_path / "killed", FeatureLayout((whole.shape[1],), torch.float32))
    assert len(left) == 8, "the batch in flight is lost, and no other"
    assert torch.equal(read(fill_store(model, tmp_path / "killed", [source])), whole)


def test_workers_decode(model, collator, whole, tmp_path):
    source = Source(rows(IMAGES), collator, True)
    store = FeatureStore(tmp_path / "workers", FeatureLayout((whole.shape[1],), torch.float32))
    column = FeatureColumn("image_features", "image", store, torch.float32, source.dataset.digests("image"))
    before = torch.get_rng_state()
    Filler(model, num_workers=2, with_bar=False).fill(VISION, store, find_lacking([column]), [source])
    assert torch.equal(torch.get_rng_state(), before), "dropout masks of training stay what they are"
    column.bind()
    assert torch.equal(read(column), whole)


def test_where_a_place_counts_rows_are_computed_alone(model, collator, tmp_path, monkeypatch):
    exact = model.image_features

    def by_place(pixel_values: Tensor) -> Tensor:
        return exact(pixel_values) + torch.arange(len(pixel_values))[:, None]

    monkeypatch.setattr(model, "image_features", by_place)
    one = read(fill_store(model, tmp_path / "one", [Source(rows(IMAGES), collator, True)]))
    turned = read(fill_store(model, tmp_path / "other", [Source(rows(IMAGES[::-1]), collator, True)]))
    assert torch.equal(one, turned.flip(0))


def test_broken_and_missing_images(model, collator, whole, tmp_path):
    broken = {"path": None, "bytes": b"\xff\xd8\xff no image"}
    dataset = rows([*IMAGES, broken, NO_IMAGE])
    column = fill_store(model, tmp_path / "whole", [Source(dataset, collator, True)])
    assert list(column.faults) == [len(IMAGES)] and "not an image" in column.faults[len(IMAGES)]
    assert len(column.store) == 21 + 1 and column.store.find(NO_IMAGE_DIGEST[None])[0] >= 0
    found = read(column)
    assert torch.equal(found[:-2], whole) and torch.equal(found[-2], found[-1]), "a white image stands for both"
    dataset.columns = {"image_features": column}
    batch = ImageCollator(collator.processor, on_bad_image="skip")(dataset.__getitems__([0, 23, 24]))
    assert batch["labels"].tolist() == [0, -100, 0] and "pixel_values" not in batch
    assert torch.equal(batch["image_features"], found[[0, 23, 24]])
    with pytest.raises(InputError, match="not an image"):
        ImageCollator(collator.processor, on_bad_image="raise")(dataset.__getitems__([23]))


class Letters:
    """A processor whose tokens are letters, padded to the longest text."""

    def __call__(self, text: list[str], **kwargs: Any) -> dict[str, Tensor]:
        longest = max(map(len, text), default=0) + 1
        ids = [[1, *(ord(letter) % 90 + 2 for letter in each)] for each in text]
        mask = [[1] * len(each) + [0] * (longest - len(each)) for each in ids]
        padded = [each + [0] * (longest - len(each)) for each in ids]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def test_a_text_has_the_same_bits_beside_any_others(tiny_config, tmp_path):
    torch.manual_seed(0)
    model = FusionForImageTextClassification(tiny_config(text_pooling="mean", initializer_range=0.5))
    texts = ["a", "of bees", "", "the cat sat", "of cats", "b", "of bees", "a longer one still"]

    def source(some: Sequence[str]) -> Source:
        table = datasets.Dataset.from_dict({"text": list(some), "label": [0] * len(some)})
        return Source(RowDataset(table), ImageTextCollator(Letters()), True)

    one = read(fill_store(model, tmp_path / "one", [source(texts)], TEXT))
    fill_store(model, tmp_path / "other", [source(["of cats", "a"])], TEXT)
    assert torch.equal(read(fill_store(model, tmp_path / "other", [source(texts[::-1])], TEXT)).flip(0), one)
    direct = torch.cat([model.eval().text_features(**Letters()([text])) for text in texts])
    torch.testing.assert_close(one, direct)


def test_what_cannot_be_stored_is_kept_in_memory_if_it_is_little(
    model, collator, whole, tmp_path, monkeypatch, caplog
):
    def fail(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("mmhf.features.store._append", fail)
    column = fill_store(model, tmp_path / "full", [Source(rows(IMAGES), collator, True)])
    assert torch.equal(read(column), whole) and caplog.text.count("No space left") == 1
    monkeypatch.setattr(fill, "_MOST_BYTES_IN_MEMORY", 1000)
    with pytest.raises(InputError, match="too many for memory"):
        fill_store(model, tmp_path / "more", [Source(rows(IMAGES), collator, True)])


def test_damaged_features_are_lacking(model, collator, whole, tmp_path):
    (path,) = (tmp_path / "whole").glob("*.features")
    content = bytearray(path.read_bytes())
    content[4 * whole.shape[1] * 2] ^= 1  # of the third row
    path.write_bytes(bytes(content))
    store = FeatureStore(tmp_path / "whole", FeatureLayout((whole.shape[1],), torch.float32))
    dataset = rows(IMAGES)
    column = FeatureColumn("image_features", "image", store, torch.float32, dataset.digests("image"))
    lacking = find_lacking([column])
    assert lacking.places.tolist() == [2]
    assert torch.equal(read(fill_store(model, tmp_path / "whole", [Source(dataset, collator, True)])), whole)


def test_texts_that_are_missing_are_empty(tmp_path):
    assert digest_texts([None]) == digest_texts([""])
