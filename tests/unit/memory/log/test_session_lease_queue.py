from __future__ import annotations

import asyncio
import math

import pytest
from waiting import PATIENCE_SECONDS, quickly

from memory.errors import SessionBusy, Stopping, TooManyWaiting
from memory.locks import SessionLocks
from memory.log.session_lease import SessionQueue


async def test_a_gate_lets_one_through_at_a_time_in_order_of_arrival() -> None:
    gates = SessionQueue()
    passed: list[int] = []
    inside = 0

    async def visit(n: int) -> None:
        nonlocal inside
        await gates.acquire("s", wait_seconds=10, most_waiting=64)
        inside += 1
        assert inside == 1
        passed.append(n)
        await asyncio.sleep(0)
        inside -= 1
        gates.release("s")

    await asyncio.gather(*(visit(n) for n in range(50)))
    assert passed == list(range(50))
    assert gates.is_free("s")


async def test_another_session_is_not_held_up() -> None:
    gates = SessionQueue()
    await gates.acquire("one", wait_seconds=0, most_waiting=64)
    await gates.acquire("two", wait_seconds=0, most_waiting=64)
    assert not gates.is_free("one")
    assert gates.is_free("three")


async def test_no_wait_is_busy_at_once() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    with pytest.raises(SessionBusy) as caught:
        await gates.acquire("s", wait_seconds=0, most_waiting=64)
    assert caught.value.retry_after_seconds > 0


async def test_a_bounded_wait_is_busy_after_its_time() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    with quickly(2, after=0.04), pytest.raises(SessionBusy):
        await gates.acquire("s", wait_seconds=0.05, most_waiting=64)
    gates.release("s")
    assert gates.is_free("s")


async def test_an_endless_wait_ends_when_the_gate_is_freed() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    waiter = asyncio.create_task(gates.acquire("s", wait_seconds=math.inf, most_waiting=64))
    await asyncio.sleep(0)
    gates.release("s")
    await asyncio.wait_for(waiter, PATIENCE_SECONDS)
    assert not gates.is_free("s")


@pytest.mark.parametrize("patience", [0, 0.05])
async def test_who_comes_between_a_release_and_the_next_in_line_waits_no_longer_than_said(
    patience: float,
) -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    first = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    await asyncio.sleep(0)
    gates.release("s")  # `first` is woken, but has not run yet
    with pytest.raises(SessionBusy):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await gates.acquire("s", wait_seconds=patience, most_waiting=64)
    await first
    gates.release("s")
    assert gates.is_free("s")


async def test_a_cancelled_waiter_frees_its_place() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    leaver = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    stayer = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    await asyncio.sleep(0)
    leaver.cancel()
    gates.release("s")
    await asyncio.wait_for(stayer, PATIENCE_SECONDS)
    assert leaver.cancelled()
    gates.release("s")
    assert gates.is_free("s")


async def test_a_waiter_cancelled_just_as_it_is_woken_passes_its_turn_on() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    leaver = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    stayer = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    await asyncio.sleep(0)
    gates.release("s")
    leaver.cancel()
    await asyncio.wait_for(stayer, PATIENCE_SECONDS)
    gates.release("s")
    assert gates.is_free("s")


async def test_a_full_queue_refuses_at_once_and_keeps_its_order() -> None:
    gates = SessionQueue()
    passed: list[int] = []

    async def visit(n: int) -> None:
        await gates.acquire("s", wait_seconds=10, most_waiting=3)
        passed.append(n)
        gates.release("s")

    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    waiting = [asyncio.create_task(visit(n)) for n in range(3)]
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(TooManyWaiting) as caught:
            await gates.acquire("s", wait_seconds=10, most_waiting=3)
        assert caught.value.retry_after_seconds > 0
    with pytest.raises(SessionBusy):  # one that would not wait finds it busy
        await gates.acquire("s", wait_seconds=0, most_waiting=64)
    await gates.acquire("t", wait_seconds=0, most_waiting=64)
    waiting[1].cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(visit(3)))
    await asyncio.sleep(0)
    gates.release("s")
    await asyncio.gather(*waiting, return_exceptions=True)
    assert passed == [0, 2, 3]
    assert gates.is_free("s")


async def test_nobody_waits_where_none_may() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=10, most_waiting=0)
    with pytest.raises(TooManyWaiting):
        await gates.acquire("s", wait_seconds=10, most_waiting=0)
    gates.release("s")
    await gates.acquire("s", wait_seconds=10, most_waiting=0)


async def test_shut_gates_let_nobody_through() -> None:
    gates = SessionQueue()
    await gates.acquire("s", wait_seconds=0, most_waiting=64)
    waiter = asyncio.create_task(gates.acquire("s", wait_seconds=10, most_waiting=64))
    await asyncio.sleep(0)
    gates.shut()
    with pytest.raises(Stopping):
        await gates.acquire("t", wait_seconds=0, most_waiting=64)
    gates.release("s")
    with pytest.raises(Stopping):
        await waiter
    assert gates.is_free("s")
    assert gates.is_free("t")


async def test_a_session_has_one_lock_while_somebody_knows_it() -> None:
    locks = SessionLocks()
    one = locks.of("s")
    assert locks.of("s") is one
    assert locks.of("t") is not one
    async with locks.of("s"):
        assert locks.of("s").locked()
