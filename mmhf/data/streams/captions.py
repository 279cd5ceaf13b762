"""Images with captions that are read from shards while training goes on."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import datasets

from mmhf.data.bad_examples import BadExample
from mmhf.data.caption_datasets import CaptionDataset, caption_number
from mmhf.data.datasets import Row, RowDataset
from mmhf.data.samplers import EpochSampler, SampleKey
from mmhf.data.streams.order import StreamOrder, StreamSampler
from mmhf.data.streams.shards import Shard, ShardFault, ShardImage
from mmhf.errors import InputError
from mmhf.recipe.caption_data_sections import CaptionDataSectionBase, StreamSection

logger = logging.getLogger(__name__)

_SHARD_BITS = 32


@dataclass(frozen=True)
class StreamedCaptions:
    """The training split of a stream, as `load_data` gives it."""

    shards: tuple[Shard, ...]
    sizes: tuple[int, ...] | None
    """Samples of each shard, where they were counted."""
    length: int
    """Samples of an epoch."""
    section: CaptionDataSectionBase
    """What to do with bad samples, and which captions to use."""
    stream: StreamSection

    def __len__(self) -> int:
        return self.length

    def read_captions(self) -> Iterator[list[str]]:
        """Go through the captions of all images once, file after file; of local tars no image is read."""
        for shard in self.shards:
            for sample in shard.read(with_images=False):
                if isinstance(sample, ShardImage):
                    yield sample.captions


def judge_fault(fault: ShardFault, section: CaptionDataSectionBase, *, split: str, on_bad_shard: str) -> BadExample:
    """List a fault of a stream, or stop where the recipe says so.

    Args:
        fault (`ShardFault`):
            The fault.
        section (`CaptionDataSectionBase`):
            `on_bad_row`, `on_bad_image` and `on_empty_text` are read.
        split (`str`):
            For the list.
        on_bad_shard (`str`):
            `"skip"` or `"raise"`.

    Raises:
        InputError: the recipe's choice for such faults is `raise`.
    """
    choices = {
        "on_bad_row": section.on_bad_row,
        "on_bad_image": section.on_bad_image,
        "on_empty_text": section.on_empty_text,
        "on_bad_shard": on_bad_shard,
    }
    if choices[fault.key] == "raise":
        key = "stream.on_bad_shard" if fault.key == "on_bad_shard" else fault.key
        way_out = f"data.{key}=skip goes on without it"
        raise InputError(f"{split}, {fault.id}, sample {fault.number}: {fault.reason}; {way_out}")
    return BadExample(split, fault.number, fault.id, fault.reason)


def caption_dataset(
    rows: datasets.Dataset | StreamedCaptions, captions: Literal["sample", "all"] = "sample", *, seed: int = 0
) -> CaptionDataset | CaptionStream:
    """Make the PyTorch data set of a split with captions.

    Args:
        rows (`Dataset` or `StreamedCaptions`):
            A split that `load_data` gave.
        captions (`str`, defaults to `"sample"`):
            `"sample"`, one of an image's captions at a time, or `"all"`, each caption with its image.
        seed (`int`, defaults to 0):
            Seed of the choice of captions.
    """
    if isinstance(rows, StreamedCaptions):
        return CaptionStream(rows, captions, seed=seed)
    return CaptionDataset(rows, captions, seed=seed)


class CaptionStream(RowDataset):
    """The samples of a stream under indices, so that it can be shuffled, shared out and resumed as a table is.

    What a row is depends on its index and epoch alone. It costs little to go through indices in order, whatever
    process or worker does it; going to another place opens the shard that it lies in, or, where sizes are not known,
    reads the track from its beginning. Images are not decoded on the way.

    Rows have what those of a `CaptionDataset` have; `faults` are bad samples that were passed since the last row.

    Args:
        streamed (`StreamedCaptions`):
            The split.
        captions (`str`, defaults to `"sample"`):
            See `CaptionDataset`.
        seed (`int`, defaults to 0):
            Seed of the choice of captions.
    """

    def __init__(
        self, streamed: StreamedCaptions, captions: Literal["sample", "all"] = "sample", *, seed: int = 0
    ) -> None:
        super().__init__(streamed)
        self.streamed = streamed
        self.captions = captions
        self.seed = seed
        self._batch_size = 1
        self._readers = streamed.stream.readers or 1
        self._held = self._readers + 1
        """Windows, and places to go on from, that are kept at most: one for each stretch that is read here, and one
        more for what a stretch shares with the next."""
        self._forget()
        self._order = self._make_order()

    def _make_order(self) -> StreamOrder:
        streamed = self.streamed
        tracks = 1 if streamed.sizes is not None else self._readers
        if tracks > len(streamed.shards):
            raise InputError(
                f"data: {len(streamed.shards)} files cannot be shared out to {tracks} readers; use fewer workers, or "
                "leave out stream.epoch_samples, so that samples are counted"
            )
        return StreamOrder(
            num_shards=len(streamed.shards),
            sizes=streamed.sizes,
            length=streamed.length,
            window=streamed.stream.shuffle_buffer,
            tracks=tracks,
            seed=streamed.stream.seed,
        )

    def _forget(self) -> None:
        # What is left of each window, by the place that a row is handed out at.
        self._windows: OrderedDict[tuple[int, int, int], dict[int, Row]] = OrderedDict()
        self._open: OrderedDict[tuple[int, int, int], Iterator[Row]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_windows"], state["_open"]  # open files stay in their process
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def lay_out(self, batch_size: int, readers: int) -> None:
        """Say how batches will be read, so that each reader has its own stretch of the stream.

        Args:
            batch_size (`int`):
                Samples of a batch.
            readers (`int`):
                Processes times workers; `stream.readers` of the recipe wins.
        """
        self._batch_size = batch_size
        self._readers = self.streamed.stream.readers or readers
        self._held = -(-self._readers // readers) + 1
        self._order = self._make_order()

    def epoch_sampler(self, seed: int = 0) -> EpochSampler:
        """Make the sampler of this stream; its order is that of `stream.seed`, whatever `seed` is."""
        self._sampler = StreamSampler(self._order, batch_size=self._batch_size, readers=self._readers)
        return self._sampler

    def _read(self, keys: Sequence[SampleKey]) -> list[Row]:
        return [self._row(key) for key in keys]

    def _row(self, key: SampleKey) -> Row:
        track, window, offset = self._order.locate(key.index)
        if offset not in self._windows.get((key.epoch, track, window), ()):
            self._load_window(key.epoch, track, window)
        left = self._windows[key.epoch, track, window]
        row = left.pop(offset)
        if not left:
            del self._windows[key.epoch, track, window]
        if self.captions == "sample":
            number = caption_number(row["image_index"], key.epoch, len(row["captions"]), seed=self.seed)
            row["caption"] = row["captions"][number]
        return row

    def _load_window(self, epoch: int, track: int, window: int) -> None:
        """Read a window, from where the last one of its track ended if that is still open."""
        order = self._order.shuffled(epoch, track, window)
        rows = self._open.pop((epoch, track, window), None) or self._rows(epoch, track, window * self._order.window)
        read = list(islice(rows, len(order)))
        self._windows[epoch, track, window] = {place: read[source] for place, source in enumerate(order)}
        self._open[epoch, track, window + 1] = rows
        for held in (self._windows, self._open):
            while len(held) > self._held:
                held.popitem(last=False)

    def _rows(self, epoch: int, track: int, start: int) -> Iterator[Row]:
        """The rows of a track from a place on, before they are shuffled within windows."""
        known = self._order.sizes is not None
        rows = self._endless_rows(epoch, track, start if known else 0)
        return rows if known else islice(rows, start, None)

    def _endless_rows(self, epoch: int, track: int, start: int) -> Iterator[Row]:
        faults: list[BadExample] = []
        passed_in_vain = 0
        for shard, skip, take in self._order.segments(epoch, track, start):
            found = False
            stop = None if take is None else skip + take
            for row in islice(self._shard_rows(shard, faults), skip, stop):
                found = True
                yield {**row, "faults": list(faults)}
                faults.clear()
            passed_in_vain = 0 if found else passed_in_vain + 1
            if passed_in_vain > len(self.streamed.shards):
                last = f"last: {faults[-1].id}: {faults[-1].reason}" if faults else "the files are empty"
                raise InputError(f"data: no sample can be read any more; {last}")

    def _shard_rows(self, shard: int, faults: list[BadExample]) -> Iterator[Row]:
        streamed = self.streamed
        for sample in streamed.shards[shard].read():
            if isinstance(sample, ShardFault):
                on_bad_shard = streamed.stream.on_bad_shard
                fault = judge_fault(sample, streamed.section, split="train", on_bad_shard=on_bad_shard)
                logger.warning("train, %s: %s", fault.id, fault.reason)
                faults.append(fault)
                continue
            row = _as_row(sample, shard)
            if self.captions == "all":
                yield from ({**row, "caption": caption} for caption in sample.captions)
            else:
                yield row


def _as_row(sample: ShardImage, shard: int) -> Row:
    return {
        "row": sample.number,
        "id": sample.id,
        "image": {"path": None, "bytes": sample.content},
        "captions": sample.captions,
        "image_index": (shard << _SHARD_BITS) + sample.number,
    }
