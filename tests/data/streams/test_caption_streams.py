from __future__ import annotations

import logging
import pickle
from collections import Counter
from itertools import islice

import datasets
import pytest
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader

from mmhf.data.caption_datasets import CaptionDataset
from mmhf.data.streams.captions import CaptionStream, StreamedCaptions, caption_dataset
from mmhf.data.streams.shards import TarShard
from mmhf.errors import InputError

SIZES = (9, 14, 1, 11, 6, 10)
TOTAL = sum(SIZES)
BATCH_SIZE = 4


@pytest.fixture
def tars(write_tar, encode, tmp_path, monkeypatch):
    """Six tars of unequal size; returns the pattern that names them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = encode()
    for shard, size in enumerate(SIZES):
        members = {}
        for number in range(size):
            members |= {f"{number:03d}.jpg": content, f"{number:03d}.txt": f"picture {shard} {number}"}
        write_tar(f"t-{shard}.tar", members)
    return str(tmp_path / "t-{0..5}.tar")


@pytest.fixture
def stream(tars, load_captions):
    def make(captions="sample", **values) -> CaptionStream:
        values = {"shuffle_buffer": 8, **values}
        data = load_captions(source="webdataset", train=tars, captions=captions, stream=values)
        dataset = caption_dataset(data.splits["train"], captions)
        assert isinstance(dataset, CaptionStream)
        return dataset

    return make


def batches(
    dataset: CaptionStream, *, epoch: int = 0, workers: int = 0, process: tuple[int, int] = (0, 1), skip: int = 0
) -> list[list[str]]:
    """The captions of the batches of one process, as Trainer and accelerate read them."""
    rank, processes = process
    dataset.lay_out(BATCH_SIZE, processes * max(workers, 1))
    sampler = dataset.epoch_sampler()
    batch_sampler = BatchSampler(sampler, BATCH_SIZE, drop_last=False)
    sharded = BatchSamplerShard(batch_sampler, processes, rank, even_batches=processes > 1)
    loader = DataLoader(dataset, batch_sampler=sharded, num_workers=workers, collate_fn=_captions)
    if skip:
        loader = skip_first_batches(loader, skip)
    sampler.set_epoch(epoch)
    return list(loader)


def _captions(rows):
    return [row["caption"] for row in rows]


def flat(parts):
    return [caption for part in parts for caption in part]


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(stream):
    dataset = stream()
    assert len(dataset) == TOTAL
    first, again, other = (flat(batches(dataset, epoch=epoch)) for epoch in (0, 0, 1))
    assert first == again and sorted(first) == sorted(other) and first != other
    assert len(set(first)) == TOTAL
    assert flat(batches(stream(seed=1))) != first
    shards = [caption.split()[1] for caption in first]
    assert sum(one != other for one, other in zip(shards, shards[1:], strict=False)) > 6  # more than file after file


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_share_out_an_epoch(stream, workers):
    assert sorted(flat(batches(stream(), workers=workers))) == sorted(flat(batches(stream())))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_out_an_epoch(stream, workers):
    parts = [batches(stream(), workers=workers, process=(rank, 3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    counted = Counter(flat(flat(parts)))
    # accelerate fills up the last round with samples from the beginning.
    assert len(counted) == TOTAL and sum(counted.values()) - TOTAL < 3 * 4


@pytest.mark.parametrize("epoch_samples", [None, 40])
@pytest.mark.slow
def test_with_a_fixed_number_of_readers_processes_and_workers_change_nothing(stream, epoch_samples):
    options = {"readers": 4, "epoch_samples": epoch_samples}
    alone = batches(stream(**options), epoch=2)
    assert batches(stream(**options), epoch=2, workers=3) == alone
    two = [batches(stream(**options), epoch=2, workers=2, process=(rank, 2)) for rank in (0, 1)]
    together = [batch for pair in zip(*two, strict=True) for batch in pair]
    # accelerate fills up the last batch with samples from the beginning.
    assert together[: len(alone) - 1] == alone[:-1] and together[len(alone) - 1][: len(alone[-1])] == alone[-1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch_samples", [None, 40])
@pytest.mark.slow
def test_a_resumed_epoch_goes_on_where_it_was(stream, workers, epoch_samples):
    whole = batches(stream(epoch_samples=epoch_samples), epoch=1, workers=workers)
    for done in (1, 4, 7):
        resumed = batches(stream(epoch_samples=epoch_samples), epoch=1, workers=workers, skip=done)
        assert resumed == whole[done:]


def test_resuming_opens_only_the_files_that_are_left(stream, monkeypatch):
    dataset = stream()
    opened = []
    read = TarShard.read
    monkeypatch.setattr(TarShard, "read", lambda self, **options: opened.append(self.url) or read(self, **options))
    batches(dataset)
    assert sorted(opened) == sorted({shard.url for shard in dataset.streamed.shards})
    opened.clear()
    batches(dataset, skip=len(dataset) // 4 - 1)
    assert len(opened) <= 2


def test_each_reader_opens_its_own_part(stream, monkeypatch):
    readers = [stream(shuffle_buffer=2) for _ in range(3)]
    opened = []
    read = TarShard.read
    monkeypatch.setattr(TarShard, "read", lambda self, **options: opened.append(self.url) or read(self, **options))
    for number, dataset in enumerate(readers):
        dataset.lay_out(BATCH_SIZE, len(readers))
        for keys in list(BatchSampler(dataset.epoch_sampler(), BATCH_SIZE, drop_last=False))[number :: len(readers)]:
            dataset.__getitems__(keys)
    # A file that one stretch ends and the next begins in is opened by both, and so is the next where a window spans.
    assert set(opened) == {shard.url for shard in dataset.streamed.shards} and len(opened) <= len(SIZES) + 2 * 2


@pytest.mark.parametrize("length", [7, 30, 130])
def test_the_length_of_an_epoch_can_be_set(stream, length, monkeypatch):
    monkeypatch.setattr("mmhf.data.sources.webdataset.count_shards", None)  # nothing is counted
    dataset = stream(epoch_samples=length)
    read = flat(batches(dataset, epoch=3))
    assert len(dataset) == len(read) == length
    counted = Counter(read)
    assert max(counted.values()) - min(counted.values()) <= 1 and len(counted) == min(length, TOTAL)


def test_a_limit_shortens_the_epoch(tars, load_captions):
    data = load_captions(source="webdataset", train=tars, limit=20)
    assert data.num_rows("train") == 20
    assert len(set(flat(batches(caption_dataset(data.splits["train"]))))) == 20


def test_memory_holds_one_window_and_no_more_when_it_was_handed_out(stream):
    dataset = stream(shuffle_buffer=8)
    dataset.lay_out(4, 1)
    keys = iter(dataset.epoch_sampler())
    held = []
    for key in keys:
        dataset[key]
        held.append(sum(map(len, dataset._windows.values())))
    assert max(held) == 7 and held[7] == 0 and held[-1] == 0


def test_captions_of_an_image(write_tar, encode, tmp_path, monkeypatch, load_captions):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    members = {}
    for number in range(4):
        members |= {f"{number}.jpg": encode(), f"{number}.json": f'{{"c": ["a{number}", "b{number}", "c{number}"]}}'}
    path = str(write_tar("t.tar", members))
    values = {"source": "webdataset", "train": path, "caption": "json:c", "stream": {"shuffle_buffer": 5}}
    sampled = caption_dataset(load_captions(**values).splits["train"])
    seen = [flat(batches(sampled, epoch=epoch)) for epoch in range(3)]
    assert [len({caption[1] for caption in epoch}) for epoch in seen] == [4, 4, 4]
    assert len({caption for epoch in seen for caption in epoch}) == 12
    everything = load_captions(captions="all", **values)
    assert everything.num_rows("train") == 12
    dataset = caption_dataset(everything.splits["train"], "all")
    rows = [dataset[key] for key in dataset.epoch_sampler()]
    assert len({row["caption"] for row in rows}) == 12
    assert all(len({row["image_index"] for row in rows if row["caption"][1] == str(n)}) == 1 for n in range(4))


def cut_off(path):
    """Cut a tar off in the middle of its sixth image."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"005.jpg") + 600])


def test_a_tar_that_is_damaged_in_the_middle_of_a_stream(tars, load_captions, tmp_path, caplog):
    cut_off(tmp_path / "t-1.tar")
    with caplog.at_level(logging.WARNING):
        data = load_captions(source="webdataset", train=tars, stream={"shuffle_buffer": 8})
    [listed] = data.bad_examples
    assert listed.split == "train" and listed.id == "t-1.tar" and "from sample 6 on is left out" in listed.reason
    assert data.num_rows("train") == TOTAL - 9
    dataset = caption_dataset(data.splits["train"])
    rows = [dataset[key] for key in dataset.epoch_sampler()]
    assert len({row["caption"] for row in rows}) == TOTAL - 9
    with pytest.raises(InputError, match=r"train, t-1.tar, sample 6: .* data.stream.on_bad_shard=skip goes on"):
        load_captions(source="webdataset", train=tars, stream={"on_bad_shard": "raise"})


def test_damage_that_nobody_counted_comes_with_the_next_row(tars, load_captions, tmp_path):
    cut_off(tmp_path / "t-1.tar")
    (tmp_path / "t-4.tar").unlink()
    data = load_captions(source="webdataset", train=tars, stream={"epoch_samples": 30, "shuffle_buffer": 4})
    assert data.bad_examples == []
    dataset = caption_dataset(data.splits["train"])
    rows = [dataset[key] for epoch in range(3) for key in _epoch(dataset, epoch)]
    found = {(fault.id, fault.row) for row in rows for fault in row["faults"]}
    assert found == {("t-1.tar", 6), ("t-4.tar", 1)} and len(rows) == 90


def _epoch(dataset, epoch):
    sampler = dataset.epoch_sampler()
    sampler.set_epoch(epoch)
    return list(sampler)


def test_files_that_are_gone_while_training_are_passed_over(stream, tmp_path):
    dataset = stream()
    (tmp_path / "t-3.tar").unlink()
    captions = [dataset[key]["caption"] for key in _epoch(dataset, 0)]
    assert len(captions) == TOTAL and len(set(captions)) == TOTAL - SIZES[3]
    for shard in range(len(SIZES)):
        (tmp_path / f"t-{shard}.tar").unlink(missing_ok=True)
    with pytest.raises(InputError, match="no sample can be read any more; last: t-.*.tar: the file is missing"):
        [dataset[key] for key in _epoch(dataset, 1)]


def test_without_any_sample(load_captions, tmp_path, tars):
    with pytest.raises(InputError, match="none of the 2 files has a sample to use; first: a.tar: the file is missing"):
        load_captions(source="webdataset", train=[str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    with pytest.raises(InputError, match="data.test: no file is named like .*none-"):
        load_captions(source="webdataset", train=tars, test=str(tmp_path / "none-*.tar"))
    with pytest.raises(InputError, match="6 files cannot be shared out to 8 readers"):
        caption_dataset(
            load_captions(source="webdataset", train=tars, stream={"epoch_samples": 9, "readers": 8}).splits["train"]
        )


def test_splits_to_evaluate_become_tables(tars, load_captions, tmp_path, write_tar, encode):
    write_tar("v.tar", {"a.jpg": encode(), "a.txt": "one", "b.jpg": "broken", "b.txt": "two", "c.jpg": encode()})
    values = {"source": "webdataset", "train": tars, "validation": str(tmp_path / "v.tar")}
    data = load_captions(**values)
    assert isinstance(data.splits["train"], StreamedCaptions)
    table = data.splits["validation"]
    assert (
        table["captions"][:] == [["one"]] and table[0]["image"]["bytes"] == encode() and table["id"][:] == ["v.tar/a"]
    )
    assert isinstance(caption_dataset(table), CaptionDataset)
    assert sorted((bad.split, bad.row, bad.id) for bad in data.bad_examples) == [
        ("validation", 2, "v.tar/b"),
        ("validation", 3, "v.tar/c"),
    ]
    assert data.fingerprint().keys() == {"train", "validation"} and data.fingerprint()["train"] == "streamed"
    assert set(load_captions(**values, wanted=["validation"]).splits) == {"validation"}
    write_tar("v.tar", {"a.jpg": encode(), "a.txt": "changed"})
    assert load_captions(**values).splits["validation"]["captions"][:] == [["changed"]]


def test_the_hubs_parquet_files_are_streamed(tmp_path, encode, load_captions, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    features = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    for split, part, count in (("train", 0, 12), ("train", 1, 8), ("test", 0, 3)):
        columns = {
            "image": [{"bytes": encode(), "path": None}] * count,
            "caption": [[f"{split} {part} {number}"] for number in range(count)],
        }
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(tmp_path / "repo" / f"{split}-{part:05d}-of-00002.parquet")
    values = {"source": "hub", "path": str(tmp_path / "repo"), "streaming": True, "stream": {"shuffle_buffer": 6}}
    data = load_captions(**values)
    assert data.num_rows("train") == 20 and data.num_rows("test") == 3
    captions = flat(batches(caption_dataset(data.splits["train"]), workers=2))
    assert sorted(captions) == sorted(f"train {part} {n}" for part, count in ((0, 12), (1, 8)) for n in range(count))
    assert data.splits["test"]["captions"][:] == [[f"test 0 {number}"] for number in range(3)]
    loaded = load_captions(**{**values, "streaming": False})
    assert sorted(flat(loaded.splits["train"]["captions"][:])) == sorted(captions)


def test_a_stream_is_pickled_without_its_open_files(stream):
    dataset = stream()
    keys = list(islice(dataset.epoch_sampler(), 6))
    read = [dataset[key]["caption"] for key in keys[:3]]
    copied = pickle.loads(pickle.dumps(dataset))
    assert [copied[key]["caption"] for key in keys] == read + [dataset[key]["caption"] for key in keys[3:]]
