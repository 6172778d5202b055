from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.streaming.answer_buffer import MOST_PIECES, PAGE, AnswerBuffer, Waiters
from service.streaming.events import Token

# What a model may send: no surrogates, but characters of one to four bytes, and joined ones.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("👩‍👩‍👧\u0301𝒳"), min_size=1
)


def all_tokens(answer: AnswerBuffer, at: int) -> list[Token]:
    found: list[Token] = []
    while at < answer.length:
        tokens = answer.tokens(at)
        assert tokens
        found += tokens
        at = tokens[-1].end
    return found


@pytest.mark.parametrize("sealed", [False, True])
@given(
    st.integers(0, 5 * MOST_PIECES).flatmap(lambda n: st.lists(TEXT, min_size=n, max_size=n)),
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_from_any_code_point_on_the_rest_comes_exactly(
    sealed: bool, texts: list[str], cuts: list[int]
) -> None:
    """R9: a reader may be cut anywhere, and as often as it likes."""
    answer, whole = AnswerBuffer(), "".join(texts)
    for text in texts:
        answer.add(text)
    if sealed:
        assert answer.seal() == whole
    assert (answer.text, answer.length) == (whole, len(whole))
    for at in (0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)):
        found = all_tokens(answer, at)
        assert whole[:at] + "".join(text for _, text in found) == whole
        for k, text in found:
            at += len(text)
            assert k == at
            assert text


@given(st.integers(0, 5 * MOST_PIECES), st.integers(1, MOST_PIECES))
def test_a_reader_that_is_a_little_behind_gets_every_piece(before: int, behind: int) -> None:
    answer = AnswerBuffer()
    for n in range(before):
        answer.add(f"{n} ")
    at = answer.length
    pieces = [f"new{n} " for n in range(behind)]
    for text in pieces:
        answer.add(text)
    assert [text for _, text in all_tokens(answer, at)] == pieces


def test_a_reader_that_is_far_behind_gets_pages() -> None:
    """R20: of which each is small, and all but the newest pieces are in few."""
    answer, many = AnswerBuffer(), 3_000
    for n in range(many):
        answer.add(f"{n:05} ")
    for _ in range(2):
        found = [text for _, text in all_tokens(answer, 0)]
        assert max(map(len, found)) == PAGE
        assert len(found) <= answer.length / PAGE + 1 + MOST_PIECES
        assert "".join(found) == answer.text
        answer.seal()


async def test_every_change_wakes_a_reader() -> None:
    answer = AnswerBuffer()
    for change in (lambda: answer.add("one"), lambda: answer.finish(None)):
        waiting = asyncio.create_task(answer.changed())
        await asyncio.sleep(0)
        change()
        assert await waiting
    assert answer.ended


async def test_all_who_wait_are_woken_once() -> None:
    changes = Waiters(10)
    waiting = [asyncio.create_task(changes.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    changes.notify()
    changes.notify()
    assert await asyncio.gather(*waiting) == [True] * 3


async def test_without_a_change_a_wait_ends_after_its_time() -> None:
    changes = Waiters(0.01)
    changes.notify()  # before any waits
    assert not await changes.wait()
    assert not changes._waiting


async def test_each_wait_has_its_own_time_though_one_timer_serves_them() -> None:
    changes, loop = Waiters(0.2), asyncio.get_running_loop()
    first = asyncio.create_task(changes.wait())
    await asyncio.sleep(0.1)
    changes.notify()
    assert await first
    began = loop.time()
    early = asyncio.create_task(changes.wait())
    await asyncio.sleep(0.05)
    late = asyncio.create_task(changes.wait())
    assert not await early
    assert 0.19 < loop.time() - began < 0.24
    assert not late.done()
    assert not await late
    assert 0.24 < loop.time() - began < 0.5


async def test_a_reader_that_leaves_takes_none_along() -> None:
    changes = Waiters(10)
    leaving, staying = (asyncio.create_task(changes.wait()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    assert len(changes._waiting) == 1
    changes.notify()
    assert await staying
