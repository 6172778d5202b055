from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import PATIENCE_SECONDS, eventually

from memory import Strata, TurnRequest
from memory.breaker import Breaker
from memory.locks import SessionLocks
from memory.models import NEVER, Segment, Session, Summary, Turn, new_session, now, session_key
from memory.stores.base import PAGE, Store
from memory.summary.rolling import RollingSummary
from memory.summary.summarizer import SuspendingSummarizer
from memory.summary.writer import SummaryWriter
from memory.window import shown, turn_tokens
from unit.builders import SESSION, USER, StoreAround, counter, opened, say, turn
from unit.texts import odd_text

KEY = session_key(USER.key, SESSION)
SMALL = {"context_tokens": 900, "window_tokens": 300, "summary_tokens": 120, "recall_tokens": 100,
         "facts_tokens": 0}  # fmt: skip
PEOPLE = "Maria Bruno Oskar Anneliese Tadeusz Kirsten Vasquez Ottoline".split()


async def check_each_seq_stands_once(strata: Strata) -> None:
    """R14: covered by the summary, else in the window or counted as dropped, never two."""
    context = await strata.memory.preview(
        TurnRequest(user=USER, session_id=SESSION, question="?", recall="none")
    )
    layer = context.receipt.layers.window
    covered = context.receipt.layers.summary.covers_through
    turns = await strata.store.turns.range(KEY, after=0, limit=9999)
    after = [m for t in turns if t.status != "running" for m in shown(t) if m.seq > covered]
    dropped = sum(
        d.count for d in context.receipt.dropped if (d.layer, d.reason) == ("window", "budget")
    )
    assert layer.messages + dropped == len(after)
    if layer.messages:
        in_window = after[-layer.messages :]
        assert (layer.first_seq, layer.last_seq) == (in_window[0].seq, in_window[-1].seq)
        assert in_window[0].seq > covered
    segments = await segments_of(strata)
    ends = [0, *(s.last_seq for s in segments)]
    assert [s.first_seq for s in segments] == [end + 1 for end in ends[:-1]]
    assert ends[-1] == covered


async def segments_of(strata: Strata) -> list[Segment]:
    """Every segment that was committed, the last one maybe not filed yet."""
    last = (await summary_of(strata)).unfiled
    filed = await strata.store.segments.of(KEY, now=now())
    if last is None:
        return filed
    return [s for s in filed if s.first_seq != last.first_seq] + [last]


async def summary_of(strata: Strata) -> Summary:
    session = await strata.store.sessions.get(KEY)
    return session.summary if session else Summary()


class Model:
    """A summariser that waits to be released, and then answers with what it was told to."""

    def __init__(self, answer: str | Exception = "", *, held: bool = False) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []
        self.release = asyncio.Event()
        if not held:
            self.release.set()

    async def __call__(self, **call: Any) -> str:
        self.calls.append(call)
        await self.release.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def another_worker(
    strata: Strata, model: Model | None = None, *, store: Store | None = None
) -> RollingSummary:
    return RollingSummary(
        store=store or strata.store, counter=strata.counter, config=strata.config,
        locks=SessionLocks(), summarizer=model,
    )  # fmt: skip


class Halting(StoreAround):
    """A store that stops before its next write of this kind, until it is released or killed."""

    def __init__(self, inner: Store, before: str) -> None:
        super().__init__(inner)
        self._before = before
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        if name == self._before:
            self.reached.set()
            await self.go_on.wait()
        return await method(*given, **named)


async def fill(strata: Strata, turns: int, *, start: int = 0) -> None:
    for n in range(start, start + turns):
        name = PEOPLE[n % len(PEOPLE)]
        await say(strata, f"I met {name} on day {n}. " + "We talked. " * 12, "How nice. " * 8,
                  recall="none")  # fmt: skip


# --- what a compaction does ------------------------------------------------------------------


async def test_a_full_window_is_compacted_down_to_its_share(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 2)
        await strata.caught_up()
        assert await summary_of(strata) == Summary()
        await fill(strata, 4, start=2)
        await strata.caught_up()
        summary = await summary_of(strata)
        assert summary.covers_through > 0
        assert "Maria" in summary.text
        assert counter().count(summary.text) == summary.tokens <= 120
        assert not summary.degraded
        left = await strata.store.turns.range(KEY, after=summary.covers_through, limit=99)
        assert sum(turn_tokens(t, counter()) for t in left) <= 0.4 * 300
        await check_each_seq_stands_once(strata)


async def test_the_summary_stands_in_the_next_prompt(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 6)
        await strata.caught_up()
        context = await strata.memory.preview(
            TurnRequest(user=USER, session_id=SESSION, question="?")
        )
        text = (await summary_of(strata)).text
        assert f"<summary>\n{text}\n</summary>" in context.messages[0].content
        assert context.receipt.layers.summary.version == 1


async def test_every_seq_stands_once_at_every_step_and_the_summary_only_advances(
    tmp_path: Path, rng: random.Random
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        before = Summary()
        for _ in range(40):
            kind = rng.random()
            if kind < 0.7:
                await say(strata, odd_text(rng), odd_text(rng, most=8), recall="none")
            elif kind < 0.8:
                accepted = await strata.memory.begin(
                    TurnRequest(user=USER, session_id=SESSION, question=odd_text(rng))
                )
                await accepted.finish("", status="failed")
            else:
                await strata.caught_up()
            await check_each_seq_stands_once(strata)
            summary = await summary_of(strata)
            assert summary.covers_through >= before.covers_through
            assert (summary.version > before.version) == (summary != before)
            before = summary
        assert before.version > 0


async def test_nothing_is_compacted_without_room_for_a_summary(tmp_path: Path) -> None:
    async with opened(tmp_path, budget={**SMALL, "summary_tokens": 0}) as strata:
        await fill(strata, 6)
        await strata.caught_up()
        assert await summary_of(strata) == Summary()


async def test_a_running_turn_is_not_compacted(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 3)
        question = "I met Vasquez. " + "And so on. " * 100
        running = await strata.memory.begin(
            TurnRequest(user=USER, session_id=SESSION, question=question)
        )
        await strata.summaries.compact(KEY)
        await strata.caught_up()
        assert (await summary_of(strata)).covers_through < 5
        await running.finish("ok", status="done")
        await strata.caught_up()
        assert (await summary_of(strata)).covers_through == 6
        await check_each_seq_stands_once(strata)


async def test_much_history_is_compacted_in_several_passes_with_no_message_skipped(
    tmp_path: Path,
) -> None:
    model = Model("They met.")
    async with opened(tmp_path, budget=SMALL, summarizer=model) as strata:
        await fill(strata, 20)
        await strata.caught_up()
        news = "".join(call["new_text"] for call in model.calls)
        covered = (await summary_of(strata)).covers_through
        for n in range(covered // 2):
            assert f"on day {n}." in news
        assert len(model.calls) > 1
        assert all(counter().count(call["new_text"]) <= 600 for call in model.calls)
        await check_each_seq_stands_once(strata)


# --- models that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "I'm sorry, I can't do that.", RuntimeError("down")])
async def test_a_model_that_fails_leaves_a_degraded_extract_and_the_watermark_advances(
    tmp_path: Path, answer: str | Exception
) -> None:
    async with opened(tmp_path, budget=SMALL, summarizer=Model(answer)) as strata:
        await fill(strata, 6)
        await strata.caught_up()
        summary = await summary_of(strata)
        assert summary.covers_through > 0
        assert summary.degraded
        assert "Maria" in summary.text
        assert "sorry" not in summary.text
        context = await strata.memory.preview(
            TurnRequest(user=USER, session_id=SESSION, question="?")
        )
        assert "summary" in context.receipt.degraded
        await check_each_seq_stands_once(strata)


async def test_a_model_that_keeps_failing_is_not_asked_for_every_compaction_but_tried_again_later(
    tmp_path: Path,
) -> None:
    model, clock = Model(RuntimeError("down")), [0.0]
    async with opened(tmp_path, budget=SMALL, summarizer=model) as strata:
        breaker = Breaker(failures=2, probe_seconds=30.0, clock=lambda: clock[0])
        strata.summaries.breaker = breaker
        strata.summaries._writer = SummaryWriter(
            counter=strata.counter, summarizer=SuspendingSummarizer(model, breaker)
        )
        for n in range(4):
            await fill(strata, 6, start=6 * n)
            await strata.caught_up()
            assert (await summary_of(strata)).degraded
            await check_each_seq_stands_once(strata)
        assert len(model.calls) == 2
        assert breaker.state == "open"
        model.answer = "They met."
        await fill(strata, 6, start=24)
        await strata.caught_up()
        assert (await summary_of(strata)).degraded
        assert len(model.calls) == 2
        clock[0] += 30.0
        await fill(strata, 6, start=30)
        await strata.caught_up()
        assert len(model.calls) > 2
        assert breaker.state == "closed"
        await check_each_seq_stands_once(strata)


# --- races -----------------------------------------------------------------------------------


async def test_turns_that_arrive_while_a_summary_is_written_survive(tmp_path: Path) -> None:
    model = Model("They met.", held=True)
    async with opened(tmp_path, budget=SMALL, summarizer=model) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        compaction = asyncio.create_task(strata.summaries.compact(KEY))
        await eventually(lambda: len(model.calls) == 1)
        await fill(strata, 3, start=6)
        await check_each_seq_stands_once(strata)
        assert (await summary_of(strata)).version == 0
        model.release.set()
        await compaction
        await check_each_seq_stands_once(strata)
        turns = await strata.store.turns.range(KEY, after=0, limit=99)
        assert [t.seq for t in turns] == list(range(1, 19, 2))
        await strata.caught_up()
        await check_each_seq_stands_once(strata)


async def test_of_two_workers_that_compact_the_same_session_one_loses_cleanly(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        models = [Model(f"Worker {n} says.", held=True) for n in range(3)]
        workers = [another_worker(strata, model) for model in models]
        compactions = [asyncio.create_task(worker.compact(KEY)) for worker in workers]
        await eventually(lambda: all(model.calls for model in models))
        for model in models:
            model.release.set()
        await asyncio.gather(*compactions)
        summary = await summary_of(strata)
        assert summary.version == 1
        await check_each_seq_stands_once(strata)


async def test_a_slow_worker_overwrites_nothing_that_was_compacted_meanwhile(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        slow = Model("Slow words.", held=True)
        compaction = asyncio.create_task(another_worker(strata, slow).compact(KEY))
        await eventually(lambda: bool(slow.calls))
        await strata.caught_up()
        await fill(strata, 6, start=6)
        await strata.caught_up()
        newest = await summary_of(strata)
        assert newest.version == 2
        slow.release.set()
        await compaction
        assert await summary_of(strata) == newest
        await check_each_seq_stands_once(strata)


@pytest.mark.parametrize("halt", ["sessions.change", "segments.put"])
async def test_of_two_workers_with_other_plans_the_first_commit_counts_with_its_segment(
    tmp_path: Path, stored_in: dict[str, str], halt: str
) -> None:
    """R14: they compact the same session from the same message on, but not to the same one."""
    async with opened(tmp_path, budget=SMALL, store=stored_in) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        slow = Halting(strata.store, halt)
        compaction = asyncio.create_task(another_worker(strata, store=slow).compact(KEY))
        await asyncio.wait_for(slow.reached.wait(), PATIENCE_SECONDS)
        first = await summary_of(strata)
        assert first.version == (0 if halt == "sessions.change" else 1)
        await check_each_seq_stands_once(strata)
        await fill(strata, 6, start=6)
        other = asyncio.create_task(another_worker(strata).compact(KEY))
        if halt == "sessions.change":  # SQLite has no claims: its one process has its locks
            if strata.store.embedded:
                await other
                assert (await summary_of(strata)).covers_through > 12
            await check_each_seq_stands_once(strata)
        slow.go_on.set()
        await asyncio.gather(compaction, other)
        assert (await summary_of(strata)).unfiled is None
        await check_each_seq_stands_once(strata)


@pytest.mark.parametrize("halt", ["sessions.change", "segments.put"])
async def test_a_compaction_that_is_killed_at_its_writes_is_done_or_finished_by_the_next(
    tmp_path: Path, stored_in: dict[str, str], halt: str
) -> None:
    """R14: a crash before the commit leaves nothing; one after it leaves the segment to file."""
    short = {"session": {"lease": "200ms"}, "budget": SMALL, "store": stored_in}
    async with opened(tmp_path, **short) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        slow = Halting(strata.store, halt)
        compaction = asyncio.create_task(another_worker(strata, store=slow).compact(KEY))
        await asyncio.wait_for(slow.reached.wait(), PATIENCE_SECONDS)
        compaction.cancel()
        await asyncio.gather(compaction, return_exceptions=True)
        left = await summary_of(strata)
        assert (left.version, left.unfiled is None) == ((0, True) if halt == "sessions.change"
                                                        else (1, False))  # fmt: skip
        assert await strata.store.segments.of(KEY, now=now()) == []
        await check_each_seq_stands_once(strata)
        await fill(strata, 6, start=6)
        await strata.caught_up()
        assert (await summary_of(strata)).unfiled is None
        assert len(await strata.store.segments.of(KEY, now=now())) == 1 + left.version
        await check_each_seq_stands_once(strata)


async def test_a_compaction_that_is_killed_before_its_write_is_done_again(tmp_path: Path) -> None:
    model = Model("They met.", held=True)
    async with opened(tmp_path, budget=SMALL, summarizer=model) as strata:
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        compaction = asyncio.create_task(strata.summaries.compact(KEY))
        await eventually(lambda: bool(model.calls))
        compaction.cancel()
        await asyncio.gather(compaction, return_exceptions=True)
        await check_each_seq_stands_once(strata)
        assert await strata.store.segments.of(KEY, now=now()) == []
    async with opened(tmp_path, budget=SMALL) as strata:
        await strata.caught_up()
        await say(strata, "And then?", recall="none")
        await strata.caught_up()
        assert (await summary_of(strata)).covers_through > 0
        await check_each_seq_stands_once(strata)


async def test_a_compaction_begun_before_an_erase_brings_nothing_back(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        await fill(strata, 6)
        await strata.caught_up()
        await strata.history.delete_session(USER, SESSION)
        await fill(strata, 6)
        await strata.sessions.session(KEY)
        slow = Model("Maria is the canary.", held=True)
        compaction = asyncio.create_task(another_worker(strata, slow).compact(KEY))
        await eventually(lambda: bool(slow.calls))
        await strata.history.delete_session(USER, SESSION)
        await say(strata, "A new life begins.", recall="none")
        await strata.sessions.session(KEY)
        slow.release.set()
        await compaction
        assert await summary_of(strata) == Summary()
        assert await strata.store.segments.of(KEY, now=now()) == []
        await check_each_seq_stands_once(strata)


# --- expiry ----------------------------------------------------------------------------------


def said(seq: int, text: str, expires: datetime = NEVER) -> Turn:
    return turn(text, "I see. " * 30, seq=seq, expires=expires, at=now())


async def prepared(
    strata: Strata, turns: Sequence[Turn], summary: Summary, segments: Sequence[Segment],
    *, begun: datetime | None = None,
) -> Session:  # fmt: skip
    session = msgspec.structs.replace(
        new_session(USER.key, SESSION, begun or now()), summary=summary,
        last_seq=turns[-1].last_seq, title="t", expires_at=NEVER,
    )  # fmt: skip
    assert await strata.store.turns.append(turns) == len(turns)
    await strata.store.sessions.put(session)
    for item in segments:
        await strata.store.segments.put(item)
    return session


def segment(first: int, last: int, text: str, expires: datetime = NEVER) -> Segment:
    return Segment(session_key=KEY, first_seq=first, last_seq=last, text=text, expires_at=expires)


async def test_a_page_of_expired_turns_does_not_hold_up_the_living(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        past = now() - timedelta(seconds=1)
        dead = [turn("", "", seq=1 + 2 * n, at=past, expires=past) for n in range(PAGE + 5)]
        alive = [said(dead[-1].last_seq + 1 + 2 * n, f"I met {p}.") for n, p in enumerate(PEOPLE)]
        await prepared(strata, [*dead, *alive], Summary(), [])
        async with asyncio.timeout(PATIENCE_SECONDS):
            await strata.summaries.compact(KEY)
        summary = await summary_of(strata)
        assert summary.covers_through > dead[-1].last_seq
        assert "Maria" in summary.text


async def test_a_summary_lives_no_longer_than_the_oldest_message_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        soon, later = now() + timedelta(hours=1), now() + timedelta(hours=2)
        turns = [said(1, "I met Maria.", soon)] + [
            said(1 + 2 * n, f"I met {p}.", later) for n, p in enumerate(PEOPLE[1:], start=1)
        ]
        await prepared(strata, turns, Summary(), [])
        await strata.summaries.compact(KEY)
        assert (await summary_of(strata)).expires_at == soon


async def test_a_compaction_over_an_expired_text_keeps_what_the_living_segments_say(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        past = now() - timedelta(seconds=1)
        old = Summary(text="8 May 2024:\nUser: Canary and Ottoline.", version=3, covers_through=8,
                      expires_at=past, tokens=9)  # fmt: skip
        segments = [
            segment(1, 4, "8 May 2024:\nUser: I met the Canary.", past),
            segment(5, 8, "8 May 2024:\nUser: I met Ottoline."),
        ]
        turns = [said(9 + 2 * n, f"I met {p}.") for n, p in enumerate(PEOPLE[:6])]
        await prepared(strata, turns, old, segments)
        await strata.summaries.compact(KEY)
        summary = await summary_of(strata)
        assert summary.covers_through > 8
        assert "Ottoline" in summary.text
        assert "Canary" not in summary.text
        assert summary.expires_at == NEVER


async def test_rolling_anew_leaves_out_what_expired_and_keeps_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL, ttl={"memory": "1h"}) as strata:
        past = now() - timedelta(seconds=1)
        old = Summary(text="Canary and Ottoline.", version=3, covers_through=8, expires_at=past)
        segments = [
            segment(1, 4, "8 May 2024:\nUser: I met the Canary.", past),
            segment(5, 8, "8 May 2024:\nUser: I met Ottoline."),
        ]
        session = await prepared(strata, [said(9, "hello")], old, segments)
        await strata.summaries.rebuild(session)
        summary = await summary_of(strata)
        assert summary.text == "8 May 2024:\nUser: I met Ottoline."
        assert (summary.version, summary.covers_through, summary.expires_at) == (4, 8, NEVER)


async def test_rolling_anew_knows_the_segment_that_a_crash_left_and_no_stray_ones(
    tmp_path: Path, stored_in: dict[str, str]
) -> None:
    hour = {"memory": "1h"}
    async with opened(tmp_path, budget=SMALL, ttl=hour, store=stored_in) as strata:
        past, begun = now() - timedelta(seconds=1), now()
        last = msgspec.structs.replace(segment(5, 8, "8 May 2024:\nUser: I met Ottoline."),
                                       begun=begun)  # fmt: skip
        old = Summary(text="Canary.", version=3, covers_through=8, expires_at=past, unfiled=last)
        segments = [
            segment(1, 4, "8 May 2024:\nUser: I met Bruno."),
            segment(5, 6, "8 May 2024:\nUser: The loser of a race met the Canary."),
            segment(9, 12, "8 May 2024:\nUser: A compaction never committed met the Canary."),
            msgspec.structs.replace(
                segment(2, 3, "8 May 2024:\nUser: In another life I met the Canary."),
                begun=begun - timedelta(days=1),
            ),
        ]
        session = await prepared(strata, [said(9, "hello")], old, segments, begun=begun)
        await strata.summaries.rebuild(session)
        summary = await summary_of(strata)
        assert summary.text == "8 May 2024:\nUser: I met Bruno.\nUser: I met Ottoline."
        assert (summary.version, summary.covers_through, summary.unfiled) == (4, 8, None)
        assert last in await strata.store.segments.of(KEY, now=now()), "it is filed now"


async def test_a_segment_that_expired_before_it_was_filed_is_never_filed(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL, ttl={"memory": "1h"}) as strata:
        past = now() - timedelta(seconds=1)
        old = Summary(text="Canary.", version=3, covers_through=8, expires_at=past,
                      unfiled=segment(1, 8, "8 May 2024:\nUser: The Canary.", past))  # fmt: skip
        session = await prepared(strata, [said(9, "hello")], old, [])
        await strata.summaries.rebuild(session)
        assert await summary_of(strata) == Summary(version=4, covers_through=8)
        assert await strata.store.segments.of(KEY, now=past - timedelta(hours=1)) == []


async def test_a_compaction_whose_messages_expire_while_it_is_written_stores_nothing_of_them(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        soon = now() + timedelta(seconds=1)
        turns = [said(1, "I met the Canary.", soon)] + [
            said(1 + 2 * n, f"I met {p}.") for n, p in enumerate(PEOPLE[1:], start=1)
        ]
        await prepared(strata, turns, Summary(), [])
        slow = Model("The Canary, Bruno and the others.", held=True)
        compaction = asyncio.create_task(another_worker(strata, slow).compact(KEY))
        await eventually(lambda: bool(slow.calls))
        await eventually(lambda: now() > soon)
        await strata.sweeper.sweep()
        slow.answer = RuntimeError("down")
        slow.release.set()
        await compaction
        summary = await summary_of(strata)
        segments = await strata.store.segments.of(KEY, now=now() - timedelta(hours=1))
        assert "Canary" not in summary.text + str(segments)
        assert summary.covers_through > 2
