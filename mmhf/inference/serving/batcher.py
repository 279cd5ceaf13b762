"""Inputs of many requests, run through a model together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """More inputs are waiting than the queue may hold."""


@dataclass(eq=False)
class _Group(Generic[Item, Answer]):
    """Inputs of one request that run in one batch."""

    key: Hashable
    items: Sequence[Item]
    answers: asyncio.Future[list[Answer]]
    arrived: float


class Batcher(Generic[Item, Answer]):
    """Gathers the inputs of requests into batches and runs them one batch at a time, in a thread of its own.

    While nothing runs, an input waits for company at most `max_wait`, and not at all once a batch is full or where no
    other request is on its way; what comes while a batch runs makes up the next one. The oldest input is in each next
    batch, so none is passed over. The inputs of one request stay together, as far as they fit into a batch: in a
    server at rest they are one batch.

    Args:
        run (`Callable`): Called with a key and inputs that share it; gives an answer for each, in their order.
        max_batch (`int`): Inputs of a batch at most.
        max_wait (`float`): Seconds.
        max_queue (`int`): Inputs that may wait.
        expects_more (`Callable`, *optional*):
            Told how many requests are here; answers whether others are on their way. Absent: they may always be.
        on_batch (`Callable`, *optional*): Told the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[Hashable, list[Item]], Sequence[Answer]],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        expects_more: Callable[[int], bool] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self._run, self._on_batch = run, on_batch
        self._expects_more = expects_more or (lambda num_here: True)
        self._num_requests = 0
        self._groups: deque[_Group[Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mmhf-model")

    @property
    def waiting(self) -> int:
        """Inputs that wait; those whose request has given up do not count."""
        return sum(len(group.items) for group in self._groups if not group.answers.done())

    async def submit(self, key: Hashable, items: Sequence[Item]) -> list[Answer]:
        """Answers for the inputs of one request, in their order. If the caller is cancelled, they are not run.

        Args:
            key (`Hashable`): Only inputs of equal keys share a batch.
            items (`Sequence`): The inputs.

        Raises:
            QueueFullError: They do not fit into the queue.
            Exception: What `run` raised for these inputs.
        """
        if self._closing:
            raise RuntimeError("the batcher is closed")
        if self.waiting + len(items) > self.max_queue:
            raise QueueFullError
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        now, loop = time.monotonic(), asyncio.get_running_loop()
        groups = [
            _Group(key, items[start : start + self.max_batch], loop.create_future(), now)
            for start in range(0, len(items), self.max_batch)
        ]
        self._groups += groups
        self._num_requests += 1
        self._changed.set()
        try:
            parts = await asyncio.gather(*(group.answers for group in groups))
        finally:
            self._num_requests -= 1
        return [answer for part in parts for answer in part]

    async def close(self) -> None:
        """Run what waits, and end."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            self._changed.clear()
            self._groups = deque(group for group in self._groups if not group.answers.done())
            if not self._groups:
                if self._closing:
                    return
                await self._changed.wait()
                continue
            first = self._groups[0]
            left = first.arrived + self.max_wait - time.monotonic()
            batch = self._fitting(first.key)
            has_room = sum(len(group.items) for group in batch) < self.max_batch
            if left > 0 and has_room and not self._closing and self._expects_more(self._num_requests):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
                continue
            chosen = {id(group) for group in batch}
            self._groups = deque(group for group in self._groups if id(group) not in chosen)
            await self._answer(batch)

    def _fitting(self, key: Hashable) -> list[_Group[Item, Answer]]:
        """The oldest groups of a key that fit into one batch."""
        batch, room = [], self.max_batch
        for group in self._groups:
            if group.key == key and len(group.items) <= room:
                batch.append(group)
                room -= len(group.items)
        return batch

    async def _answer(self, batch: list[_Group[Item, Answer]]) -> None:
        items, begun = [item for group in batch for item in group.items], time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch[0].key, items)
            if len(answers) != len(items):
                raise RuntimeError(f"{len(answers)} answers for {len(items)} inputs")
        except Exception as error:  # noqa: BLE001  (whoever asked gets it)
            if len(batch) == 1:
                if not batch[0].answers.done():
                    batch[0].answers.set_exception(error)
                return
            # One request must not fail for another's inputs.
            for group in batch:
                await self._answer([group])
            return
        if self._on_batch is not None:
            self._on_batch(len(items), time.monotonic() - begun)
        start = 0
        for group in batch:
            end = start + len(group.items)
            if not group.answers.done():
                group.answers.set_result(list(answers[start:end]))
            start = end
