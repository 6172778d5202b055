from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import eventually

from memory.config import SessionConfig
from memory.errors import StoreUnavailable, TurnLost
from service.streaming.answer_buffer import LEASE_PARTS, AnswerBuffer, Checkpoints


class Store:
    """Counts the flushes, and how many are under way at once."""

    def __init__(self) -> None:
        self.flushed: list[str] = []
        self.lost = 0
        self.at_once = self.most_at_once = 0
        self.seconds = 0.0
        self.fails: BaseException | None = None

    def checkpoints(
        self, answer: AnswerBuffer, gate: asyncio.Semaphore | None = None, **session: Any
    ) -> Checkpoints:
        async def flush() -> None:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                text = answer.text
                await asyncio.sleep(self.seconds)
                if self.fails is not None:
                    raise self.fails
                self.flushed.append(text)
            finally:
                self.at_once -= 1

        def lost() -> None:
            self.lost += 1

        return Checkpoints(
            answer,
            SessionConfig.model_validate({"partial_flush": "10ms", "lease": "30s", **session}),
            flush=flush,
            lost=lost,
            gate=gate or asyncio.Semaphore(10),
        )


async def test_an_answer_is_stored_when_it_has_grown_and_only_then() -> None:
    store, answer = Store(), AnswerBuffer()
    checkpoints = store.checkpoints(answer)
    await asyncio.sleep(0.05)
    assert store.flushed == []
    for text in ("one", "one two"):
        answer.add(text[answer.length :])
        await eventually(lambda text=text: store.flushed[-1:] == [text])  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert store.flushed == ["one", "one two"]
    await checkpoints.stop()


async def test_a_lease_is_renewed_though_nothing_comes() -> None:
    store, lease = Store(), 0.15
    checkpoints = store.checkpoints(AnswerBuffer(), lease=f"{lease}s")
    began = asyncio.get_running_loop().time()
    await eventually(lambda: len(store.flushed) == 3)
    assert asyncio.get_running_loop().time() - began >= 3 * lease / LEASE_PARTS
    await checkpoints.stop()


async def test_what_waits_for_the_store_waits_without_a_copy_of_its_text() -> None:
    """R20: and what it stores at last is the newest."""
    store, gate = Store(), asyncio.Semaphore(2)
    store.seconds = 0.05
    answers = [AnswerBuffer() for _ in range(8)]
    all_checkpoints = [store.checkpoints(answer, gate) for answer in answers]
    for answer in answers:
        answer.add("one")
    await eventually(lambda: store.at_once == 2)
    for answer in answers:
        answer.add(" two")
    await eventually(lambda: len(store.flushed) >= 8)
    assert store.most_at_once == 2
    assert store.flushed[:8] == ["one"] * 2 + ["one two"] * 6
    for each in all_checkpoints:
        await each.stop()


async def test_a_lost_turn_is_reported_once_and_stored_no_more() -> None:
    store, answer = Store(), AnswerBuffer()
    store.fails = TurnLost(erased=False)
    checkpoints = store.checkpoints(answer)
    answer.add("one")
    await eventually(lambda: store.lost == 1)
    store.fails = None
    answer.add(" two")
    await asyncio.sleep(0.05)
    assert (store.lost, store.flushed) == (1, [])
    await checkpoints.stop()


async def test_a_store_that_is_away_is_tried_again_when_there_is_more() -> None:
    store, answer = Store(), AnswerBuffer()
    store.fails = StoreUnavailable("away")
    checkpoints = store.checkpoints(answer)
    answer.add("one")
    await asyncio.sleep(0.05)
    store.fails = None
    answer.add(" two")
    await eventually(lambda: store.flushed == ["one two"])
    await checkpoints.stop()


@pytest.mark.parametrize("under_way", [False, True])
async def test_nothing_is_stored_after_the_end(under_way: bool) -> None:
    store, answer = Store(), AnswerBuffer()
    store.seconds = 0.05
    checkpoints = store.checkpoints(answer)
    answer.add("one")
    if under_way:
        await eventually(lambda: store.at_once == 1)
    await checkpoints.stop()
    assert store.at_once == 0
    await asyncio.sleep(0.1)
    assert store.flushed == []
