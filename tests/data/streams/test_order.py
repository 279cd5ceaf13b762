from __future__ import annotations

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.streams.order import StreamOrder, StreamSampler


def order(sizes=(5, 0, 3, 7), **values) -> StreamOrder:
    values = {"length": sum(sizes), "window": 4, "num_shards": len(sizes), **values}
    return StreamOrder(sizes=sizes, **values)


def samples(of: StreamOrder, epoch: int, track: int, start: int, count: int) -> list[tuple[int, int]]:
    """Shard and number in it of the samples from a place on, by the true sizes."""
    sizes = of.sizes or (5, 2, 3, 7)

    def walk():
        for segment in of.segments(epoch, track, start):
            stop = sizes[segment.shard] if segment.take is None else segment.skip + segment.take
            yield from ((segment.shard, number) for number in range(segment.skip, stop))

    return list(islice(walk(), count))


def test_a_lap_has_every_sample_once_and_every_place_can_be_gone_to():
    whole = samples(order(), 2, 0, 0, 45)
    for lap in range(3):
        assert len(set(whole[15 * lap : 15 * lap + 15])) == 15
    assert whole[:15] != whole[15:30]
    for start in range(45):
        assert samples(order(), 2, 0, start, 45 - start) == whole[start:]
    assert samples(order(), 3, 0, 0, 15) != whole[:15] != samples(order(seed=1), 2, 0, 0, 15)


def test_windows_are_permutations_and_the_last_is_short():
    assert [sorted(order().shuffled(0, 0, window)) for window in range(4)] == [[0, 1, 2, 3]] * 3 + [[0, 1, 2]]
    orders = {tuple(order(window=8).shuffled(epoch, 0, 0)) for epoch in range(5)}
    assert len(orders) == 5


def test_tracks_share_out_files_of_unknown_size_and_keep_to_them():
    unknown = StreamOrder(num_shards=4, sizes=None, length=100, window=4, tracks=2)
    first, second = ({shard for shard, _ in samples(unknown, 1, track, 0, 60)} for track in (0, 1))
    assert len(first) == len(second) == 2 and first | second == {0, 1, 2, 3}


@given(
    length=st.integers(1, 120),
    batch_size=st.integers(1, 20),
    readers=st.integers(1, 7),
    known=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=200)
def test_each_reader_gets_a_stretch_and_each_index_comes_once(length, batch_size, readers, known, epoch):
    of = StreamOrder(
        num_shards=8, sizes=(20,) * 8 if known else None, length=length, window=6, tracks=1 if known else readers
    )
    sampler = StreamSampler(of, batch_size=batch_size, readers=readers)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) == length == len({key.index for key in keys})
    assert {key.epoch for key in keys} == {epoch}
    batches = [keys[start : start + batch_size] for start in range(0, length, batch_size)]
    for reader in range(readers):
        places = [key.index // of.tracks for batch in batches[reader::readers] for key in batch]
        assert places == list(range(places[0], places[0] + len(places))) if places else True
        assert known or {key.index % readers for batch in batches[reader::readers] for key in batch} <= {reader}
    if known:
        assert sorted(key.index for key in keys) == list(range(length))
