"""Features on disk: what was written is read, whoever wrote it, and nothing else ever is."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.digests import DIGEST_BYTES, digests_of
from mmhf.errors import InputError
from mmhf.features import store as store_module
from mmhf.features.store import (
    DamagedStoreError,
    FeatureLayout,
    FeatureStore,
    make_room,
)

LAYOUT = FeatureLayout((3,), torch.float32)


def digests(*numbers: int):
    return digests_of([number.to_bytes(DIGEST_BYTES, "big") for number in numbers])


def features_of(*numbers: int) -> torch.Tensor:
    return torch.tensor([[number, number + 0.5, -number] for number in numbers], dtype=torch.float32)


def read(store: FeatureStore, *numbers: int) -> torch.Tensor:
    positions = store.find(digests(*numbers))
    assert (positions >= 0).all()
    return store.read(positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_read_equals_written(tmp_path: Path, dtype: torch.dtype) -> None:
    layout = FeatureLayout((2, 5), dtype)
    values = torch.randn(40, 2, 5).to(dtype)
    FeatureStore(tmp_path, layout).append(digests(*range(40)), values)
    store = FeatureStore(tmp_path, layout)
    order = torch.randperm(40).tolist()
    assert torch.equal(read(store, *order), values[order])


def test_absent_samples_are_absent(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, LAYOUT)
    assert store.find(digests(1)).tolist() == [-1]
    store.append(digests(1, 3), features_of(1, 3))
    store.refresh()
    assert (store.find(digests(0, 1, 2, 3, 4)) >= 0).tolist() == [False, True, False, True, False]


def test_digests_that_share_a_beginning_are_told_apart(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, LAYOUT)
    contents = [b"the same" + bytes([number]) * 8 for number in range(3)]
    store.append(digests_of(contents[:2]), features_of(0, 1))
    store.refresh()
    positions = store.find(digests_of(contents))
    assert positions[2] == -1
    assert torch.equal(store.read(positions[:2]), features_of(0, 1))


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=6), asked=st.lists(st.integers(0, 40)))
def test_any_batches_are_found_again(tmp_path_factory: pytest.TempPathFactory, batches, asked) -> None:
    folder = tmp_path_factory.mktemp("store")
    for number, batch in enumerate(batches):
        writer = FeatureStore(folder, LAYOUT) if number % 2 else FeatureStore(folder, LAYOUT)
        if batch:
            writer.append(digests(*batch), features_of(*batch))
    store = FeatureStore(folder, LAYOUT)
    written = {number for batch in batches for number in batch}
    if asked:
        assert (store.find(digests(*asked)) >= 0).tolist() == [number in written for number in asked]
    found = [number for number in asked if number in written]
    if found:
        assert torch.equal(read(store, *found), features_of(*found))


def append_forever(folder: Path) -> None:
    store = FeatureStore(folder, LAYOUT)
    for number in range(10**9):
        store.append(digests(number), features_of(number))


def test_kill_loses_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=append_forever, args=(tmp_path,))
    process.start()
    while len(FeatureStore(tmp_path, LAYOUT)) < 50:
        assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = FeatureStore(tmp_path, LAYOUT)
    assert torch.equal(read(store, *range(len(store))), features_of(*range(len(store))))
    assert store.find(digests(len(store))).tolist() == [-1]


def test_store_cut_short_keeps_whole_rows(tmp_path: Path) -> None:
    FeatureStore(tmp_path, LAYOUT).append(digests(1, 2, 3), features_of(1, 2, 3))
    path = next(tmp_path.glob("*.features"))
    path.write_bytes(path.read_bytes()[:-1])
    store = FeatureStore(tmp_path, LAYOUT)
    assert torch.equal(read(store, 1, 2), features_of(1, 2))
    assert store.find(digests(3)).tolist() == [-1]


@pytest.mark.parametrize("place", [0, 7, 23, 35])
def test_flipped_bytes_are_told(tmp_path: Path, place: int) -> None:
    FeatureStore(tmp_path, LAYOUT).append(digests(1, 2, 3), features_of(1, 2, 3))
    path = next(tmp_path.glob("*.features"))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    store = FeatureStore(tmp_path, LAYOUT)
    with pytest.raises(DamagedStoreError, match=r"damaged \(row"):
        read(store, 1, 2, 3)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    FeatureStore(tmp_path, LAYOUT)
    with pytest.raises(DamagedStoreError, match="not the layout"):
        FeatureStore(tmp_path, FeatureLayout((4,), torch.float32))


def test_worker_processes_open_the_files_themselves(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, LAYOUT)
    store.append(digests(5), features_of(5))
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(read(copy, 5), features_of(5))


def test_unused_stores_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old", "oldest"]):
        FeatureStore(tmp_path / name, LAYOUT).append(digests(*range(100)), features_of(*range(100)))
        os.utime(tmp_path / name / "store.json", (1_000 - age, 1_000 - age))
    own = FeatureStore(tmp_path / "own", LAYOUT)
    taken = sum(path.stat().st_size for path in tmp_path.glob("*/*"))
    make_room(tmp_path, 1_500, max_bytes=taken, keep=own.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "own"]
    with pytest.raises(InputError, match="short of room"):
        make_room(tmp_path, 10_000, max_bytes=9_000, keep=own.folder)
    with pytest.raises(InputError, match="short of room"):
        make_room(tmp_path, 2**62, max_bytes=None, keep=own.folder)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no store can be kept there"):
        FeatureStore(tmp_path / "file" / "store", LAYOUT)


def test_features_are_whole_before_their_records_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, seen = store_module._append, []

    def watched(path: Path, *args) -> None:
        append(path, *args)
        rows, records = (next(iter(tmp_path.glob(f"*.{kind}")), None) for kind in ("features", "records"))
        seen.append([0 if each is None else each.stat().st_size for each in (rows, records)])

    monkeypatch.setattr(store_module, "_append", watched)
    FeatureStore(tmp_path, LAYOUT).append(digests(1, 2), features_of(1, 2))
    assert seen == [[24, 0], [24, 48]], "whoever sees a record finds its features"


def test_features_in_memory_are_found_beside_those_on_disk(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, LAYOUT)
    store.append(digests(1), features_of(1))
    store.keep(digests(2, 3), features_of(2, 3))
    positions = store.find(digests(3, 2))
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.read(positions), features_of(3, 2)), "positions hold in a worker process"
    assert len(FeatureStore(tmp_path, LAYOUT)) == 1


def test_full_disk_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, LAYOUT)
    store.append(digests(1), features_of(1))
    real_open = Path.open
    full = True

    def open_on_full_disk(path: Path, mode: str = "r", *args, **kwargs):
        if full and path.suffix == ".records":
            raise OSError(28, "No space left on device")
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(InputError, match="No space left"):
        store.append(digests(2), features_of(2))
    full = False
    store.append(digests(3), features_of(3))
    store.refresh()
    assert torch.equal(read(store, 1, 3), features_of(1, 3))
    assert np.all(store.find(digests(2)) == -1)
