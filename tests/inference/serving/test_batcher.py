"""Inputs of many requests in one batch: each gets its own answer, and none waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.inference.serving.batcher import Batcher, QueueFullError


def batcher(run, **changes):
    return Batcher(run, **{"max_batch": 4, "max_wait": 0.005, "max_queue": 1000, **changes})


def doubled(key, items):
    return [(key, 2 * item) for item in items]


REQUEST = st.tuples(st.integers(0, 2), st.lists(st.integers(), min_size=1, max_size=9), st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([0.0, 0.002]))
def test_any_interleaving_gives_each_its_own_answers(requests, max_batch, max_wait):
    batches = []

    def run(key, items):
        batches.append(items)
        return doubled(key, items)

    async def scenario():
        made = batcher(run, max_batch=max_batch, max_wait=max_wait)

        async def ask(key, items, pause):
            await asyncio.sleep(pause / 1000)
            return await made.submit(key, items)

        answers = await asyncio.gather(*(ask(*request) for request in requests))
        await made.close()
        return answers

    answers = asyncio.run(scenario())
    assert answers == [[(key, 2 * item) for item in items] for key, items, _ in requests]
    assert max(map(len, batches)) <= max_batch
    assert sorted(sum(batches, [])) == sorted(item for _, items, _ in requests for item in items)


def test_requests_share_a_batch_and_one_request_is_one():
    sizes = []

    async def scenario():
        made = batcher(doubled, max_wait=1.0, on_batch=lambda size, seconds: sizes.append(size))
        await asyncio.gather(made.submit("a", [1, 2]), made.submit("a", [3, 4]))  # full: nobody waits
        await asyncio.gather(made.submit("a", [1, 2, 3]), made.submit("b", [4]), made.submit("a", [5]))
        await made.close()

    begun = time.monotonic()

    async def bounded():
        await asyncio.wait_for(scenario(), 20)

    asyncio.run(bounded())
    assert sizes == [4, 4, 1]  # b waited for its second
    assert 0.9 < time.monotonic() - begun < 15


def test_one_input_waits_no_longer_than_it_is_told():
    async def scenario():
        made = batcher(doubled, max_wait=0.05)
        await made.submit("a", [1])
        begun = time.monotonic()
        await made.submit("a", [1])
        waited = time.monotonic() - begun
        await made.close()
        return waited

    assert 0.045 < asyncio.run(scenario()) < 2


def test_an_input_waits_only_while_others_are_on_their_way():
    sizes = []

    async def scenario(under_way):
        made = batcher(doubled, max_wait=60.0, expects_more=lambda num_here: under_way > num_here,
                       on_batch=lambda size, seconds: sizes.append(size))  # fmt: skip
        await asyncio.wait_for(asyncio.gather(*(made.submit("a", [each]) for each in range(under_way))), 30)
        await made.close()

    for under_way in (1, 3):
        asyncio.run(scenario(under_way))
    assert sizes == [1, 3]


def test_an_error_is_for_the_request_that_brought_it():
    def run(key, items):
        if 13 in items:
            raise ValueError("thirteen")
        return doubled(key, items)

    async def scenario():
        made = batcher(run, max_wait=0.05)
        asked = (made.submit("a", [1]), made.submit("a", [13]), made.submit("a", [2]))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert await made.submit("a", [3]) == [("a", 6)]
        await made.close()
        return answers

    first, second, third = asyncio.run(scenario())
    assert (first, third) == ([("a", 2)], [("a", 4)])
    assert isinstance(second, ValueError)


def test_a_run_that_loses_an_answer_gives_none_to_anybody():
    async def scenario():
        made = batcher(lambda key, items: items[1:])
        with pytest.raises(RuntimeError, match="1 answers for 2 inputs"):
            await made.submit("a", [1, 2])
        await made.close()

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_who_gave_up_makes_room():
    free = threading.Event()
    ran = []

    def run(key, items):
        free.wait(20)
        ran.extend(items)
        return doubled(key, items)

    async def scenario():
        made = batcher(run, max_wait=0.0, max_queue=3, max_batch=3)
        running = asyncio.create_task(made.submit("a", [0]))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(made.submit("a", [1, 2]))
        kept = asyncio.create_task(made.submit("a", [3]))
        await asyncio.sleep(0.05)
        assert made.waiting == 3
        with pytest.raises(QueueFullError):
            await made.submit("a", [4])
        gone.cancel()
        await asyncio.sleep(0)
        assert made.waiting == 1
        late = asyncio.create_task(made.submit("a", [5]))
        await asyncio.sleep(0)
        free.set()
        assert [await running, await kept, await late] == [[("a", 0)], [("a", 6)], [("a", 10)]]
        await made.close()
        with pytest.raises(RuntimeError, match="closed"):
            await made.submit("a", [1])

    asyncio.run(scenario())
    assert ran == [0, 3, 5]


def test_closing_answers_what_waits():
    async def scenario():
        made = batcher(doubled, max_wait=60.0)
        asked = [asyncio.create_task(made.submit("a", [number])) for number in range(3)]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(made.close(), 10)
        return [await each for each in asked]

    assert asyncio.run(scenario()) == [[("a", 2 * number)] for number in range(3)]
