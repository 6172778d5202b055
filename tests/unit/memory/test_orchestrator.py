from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import PATIENCE_SECONDS, eventually, quickly

from memory import Incoming, Strata, TurnRequest, User
from memory.config import BudgetConfig
from memory.errors import (
    BudgetExceeded,
    IndexUnavailable,
    InvalidInput,
    SessionBusy,
    Stopping,
    TurnEnded,
)
from memory.indexes.base import Hits, VectorIndex
from memory.models import Message, Turn, TurnError, now, session_key
from memory.stores.base import Store
from unit.builders import (
    SESSION,
    USER,
    IndexAround,
    LateModel,
    StoreAround,
    another_memory,
    count_messages,
    counter,
    late_write_is_lost,
    opened,
    say,
    turn,
)

KEY = session_key(USER.key, SESSION)


def ask(question: str = "hello", **more: Any) -> TurnRequest:
    return TurnRequest(**{"user": USER, "session_id": SESSION, "question": question, **more})


async def log_of(strata: Strata, key: str = KEY) -> list[Message]:
    turns = await strata.store.turns.range(key, after=0, limit=999)
    return [m for t in turns for m in t.messages]


# --- a turn ----------------------------------------------------------------------------------


async def test_a_question_is_durable_before_a_model_is_called(strata: Strata) -> None:
    accepted = await strata.memory.begin(ask("My dog is called Bruno.", metadata={"a": 1}))
    stored = await strata.store.turns.get(accepted.turn.id, now=now())
    assert stored is not None
    assert stored == accepted.turn
    assert (stored.status, stored.seq, stored.last_seq) == ("running", 1, 2)
    assert stored.user is not None
    assert stored.assistant is not None
    assert (stored.user.content, stored.user.status) == ("My dog is called Bruno.", "done")
    assert (stored.assistant.content, stored.assistant.status) == ("", "running")
    assert stored.metadata == {"a": 1}
    accepted.abandon()


async def test_an_answer_is_stored_with_its_receipt_and_frees_the_session(strata: Strata) -> None:
    accepted = await strata.memory.begin(ask())
    context = await accepted.context()
    await accepted.flush("Hi")
    done = await accepted.finish("Hi there", status="done", usage={"prompt_tokens": 9},
        finish_reason="stop", model="m",
    )  # fmt: skip
    assert await strata.store.turns.get(done.id, now=now()) == done
    assert done.assistant is not None
    assert (done.assistant.content, done.assistant.status) == ("Hi there", "done")
    assert done.assistant.tokens == counter().count("Hi there")
    assert (done.status, done.usage, done.finish_reason) == ("done", {"prompt_tokens": 9}, "stop")
    assert done.receipt == context.receipt
    assert done.receipt is not None
    assert done.receipt.used_tokens == count_messages(counter(), context.messages)
    assert (await strata.memory.begin(ask())).turn.seq == 3


async def test_the_next_turn_reads_the_ones_before_it(strata: Strata) -> None:
    await say(strata, "My dog is called Bruno.", "What a nice name!")
    accepted = await strata.memory.begin(ask("Who is he?"))
    context = await accepted.context()
    assert [m.content for m in context.messages[1:]] == [
        "My dog is called Bruno.", "What a nice name!", "Who is he?",
    ]  # fmt: skip
    assert context.receipt.layers.window.messages == 2
    accepted.abandon()


async def test_the_prefix_of_a_growing_session_stays_the_same(strata: Strata) -> None:
    before = 0
    for n in range(5):
        done = await say(strata, f"message number {n}", recall="none")
        assert done.receipt is not None
        receipt = done.receipt
        assert receipt.stable_prefix_tokens == before
        before = receipt.used_tokens - receipt.layers.question.tokens


async def test_flushing_keeps_the_answer_so_far_and_the_turn_running(strata: Strata) -> None:
    accepted = await strata.memory.begin(ask())
    await accepted.flush("so far")
    stored = await strata.store.turns.get(accepted.turn.id, now=now())
    assert stored is not None
    assert stored.assistant is not None
    assert (stored.status, stored.assistant.content) == ("running", "so far")
    accepted.abandon()


@pytest.mark.parametrize(("text", "status"), [("half an", "partial"), ("", "failed")])
async def test_a_failed_turn_keeps_the_question_and_what_was_streamed(
    strata: Strata, text: str, status: str
) -> None:
    accepted = await strata.memory.begin(ask("My dog is called Bruno."))
    error = TurnError("model_error", "no", True)
    failed = await accepted.finish(text, status="failed", error=error)
    assert failed.assistant is not None
    assert (failed.status, failed.assistant.status, failed.error) == ("failed", status, error)
    context = await strata.memory.preview(ask("What is my dog called?"))
    shown = "\n".join(m.content for m in context.messages)
    assert "Bruno" in shown
    assert text in shown


async def test_a_late_write_is_lost(strata: Strata) -> None:
    accepted = await strata.memory.begin(ask())
    await accepted.finish("done", status="done")
    assert await late_write_is_lost(strata, accepted)
    with pytest.raises(TurnEnded):
        await accepted.finish("late")
    assert [m.content for m in await log_of(strata)] == ["hello", "done"]


async def test_what_does_not_fit_is_refused_before_anything_is_stored(strata: Strata) -> None:
    tiny = BudgetConfig(context_tokens=60, window_tokens=0, summary_tokens=0, recall_tokens=0,
                        facts_tokens=0)  # fmt: skip
    for call in (strata.memory.begin, strata.memory.preview):
        with pytest.raises(BudgetExceeded):
            await call(ask("word " * 100, budget=tiny))
    assert await log_of(strata) == []
    assert (await strata.memory.begin(ask())).turn.seq == 1


async def test_a_preview_is_what_a_turn_would_send_and_stores_nothing(strata: Strata) -> None:
    await say(strata, "My dog is called Bruno.", "Nice.")
    await strata.caught_up()
    preview = await strata.memory.preview(ask("What is my dog called?", session_id="new"))
    assert "Bruno" in preview.recall_block
    assert await log_of(strata, session_key(USER.key, "new")) == []
    accepted = await strata.memory.begin(ask("What is my dog called?", session_id="new"))
    assert (await accepted.context()).messages == preview.messages
    accepted.abandon()


async def test_a_plain_context_reads_no_memory(strata: Strata) -> None:
    await say(strata, "My dog is called Bruno.", "Nice.")
    context = strata.memory.plain(ask("What is my dog called?", system="Be kind."))
    assert len(context.messages) == 2
    assert "Bruno" not in str(context.messages)


async def test_recall_reaches_as_far_as_it_is_allowed(strata: Strata) -> None:
    await say(strata, "My dog is called Bruno.", session="old")
    await strata.caught_up()
    blocks = {
        scope: (
            await strata.memory.preview(ask("What is my dog called?", recall=scope))
        ).recall_block
        for scope in ("user", "session", "none")
    }
    assert "Bruno" in blocks["user"]
    assert (blocks["session"], blocks["none"]) == ("", "")


# --- one after the other (R3, R5) --------------------------------------------------------------


async def test_fifty_concurrent_turns_of_one_session_come_one_after_the_other(
    strata: Strata,
) -> None:
    prompts: dict[str, list[str]] = {}

    async def one(n: int) -> None:
        accepted = await strata.memory.begin(ask(f"question {n}", recall="none"))
        context = await accepted.context()
        prompts[accepted.turn.user.content] = [m.content for m in context.messages[1:-1]]
        await asyncio.sleep(0)
        await accepted.finish(f"answer {n}", status="done")

    await asyncio.gather(*(one(n) for n in range(50)))
    messages = await log_of(strata)
    assert [m.seq for m in messages] == list(range(1, 101))
    assert [m.role for m in messages] == ["user", "assistant"] * 50
    texts = [m.content for m in messages]
    for n in range(0, 100, 2):
        assert prompts[texts[n]] == texts[:n], "each prompt holds all earlier turns"
    assert texts[::2] == [f"question {n}" for n in range(50)], "in order of arrival"


async def test_turns_and_recorded_messages_share_the_gate(strata: Strata) -> None:
    async def record(n: int) -> None:
        await strata.memory.record(
            USER, SESSION, [Incoming(role="user", content=f"told {n} {i}") for i in range(3)]
        )

    await asyncio.gather(
        *(record(n) for n in range(10)), *(say(strata, f"q {n}") for n in range(10))
    )
    messages = await log_of(strata)
    assert [m.seq for m in messages] == list(range(1, 51))
    told = [m.content for m in messages if m.content.startswith("told")]
    assert told == [f"told {n} {i}" for n in range(10) for i in range(3)]


async def test_a_busy_session_is_refused_at_once_or_after_the_wait(strata: Strata) -> None:
    await strata.memory.begin(ask())
    for wait, least, most in ((0, 0.0, 0.5), (0.2, 0.19, 2.0)):
        worker = another_memory(strata, session={"wait": wait})
        first = await worker.begin(ask(session_id=f"other {wait}"))
        with quickly(most, after=least):
            with pytest.raises(SessionBusy):
                await worker.begin(ask(session_id=f"other {wait}"))
            with pytest.raises(SessionBusy):
                await worker.record(USER, f"other {wait}", [Incoming(role="user", content="x")])
        first.abandon()
        assert len(await log_of(strata, first.turn.session_key)) == 2


async def test_a_cancelled_waiter_frees_its_place(strata: Strata) -> None:
    running = await strata.memory.begin(ask("first"))
    leaver = asyncio.create_task(strata.memory.begin(ask("never said")))
    stayer = asyncio.create_task(strata.memory.begin(ask("second")))
    await asyncio.sleep(0)
    leaver.cancel()
    await running.finish("ok", status="done")
    accepted = await asyncio.wait_for(stayer, PATIENCE_SECONDS)
    assert accepted.turn.seq == 3
    assert leaver.cancelled()
    accepted.abandon()
    assert "never said" not in [m.content for m in await log_of(strata)]


async def test_a_question_cancelled_while_it_is_stored_does_not_block_the_session(
    strata: Strata,
) -> None:
    class Holding(Racing):
        """Does not come back from an insert."""

        async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
            result = await method(*given, **named)
            if name == "turns.append":
                await asyncio.Event().wait()
            return result

    memory = another_memory(strata, store=Holding(strata.store, turn("x")))  # type: ignore[arg-type]
    leaver = asyncio.create_task(memory.begin(ask("half way")))

    async def stored() -> bool:
        return bool(await log_of(strata))

    await eventually(stored)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert leaver.cancelled()
    await say(strata, "afterwards")
    await strata.caught_up()
    turns = await strata.store.turns.range(KEY, after=0, limit=9)
    assert [t.status for t in turns][-1] == "done"
    assert "running" not in [t.status for t in turns]
    assert await strata.store.work.pending() == []


async def test_a_turn_whose_end_could_not_be_stored_is_interrupted_by_the_next(
    strata: Strata,
) -> None:
    lost = await strata.memory.begin(ask("My dog is called Bruno."))
    await lost.flush("What a ni")
    lost.abandon()
    await say(strata, "Are you there?", "Yes.")
    messages = await log_of(strata)
    assert [(m.content, m.status) for m in messages] == [
        ("My dog is called Bruno.", "done"),
        ("What a ni", "interrupted"),
        ("Are you there?", "done"),
        ("Yes.", "done"),
    ]
    assert await late_write_is_lost(strata, lost)
    await strata.caught_up()
    assert await strata.store.work.pending() == []
    found = await strata.memory.preview(ask("What is my dog called?", session_id="new"))
    assert "Bruno" in found.recall_block


async def test_a_process_that_stops_takes_no_more_turns(strata: Strata) -> None:
    running = await strata.memory.begin(ask())
    waiting = asyncio.create_task(strata.memory.begin(ask("second")))
    await asyncio.sleep(0)
    strata.memory.stop()
    with pytest.raises(Stopping):
        await strata.memory.begin(ask(session_id="other"))
    await running.finish("ok", status="done")
    with pytest.raises(Stopping):
        await waiting
    assert len(await log_of(strata)) == 2


class Racing(StoreAround):
    """A store in which another worker inserts a turn just before our first insert."""

    def __init__(self, inner: Store, rival: Turn) -> None:
        super().__init__(inner)
        self._rival: Turn | None = rival

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        rival, self._rival = (self._rival, None) if name == "turns.append" else (None, self._rival)
        if rival is not None:
            await self.inner.turns.append([rival])
        return await method(*given, **named)


async def test_who_loses_a_race_for_a_seq_takes_the_next(strata: Strata) -> None:
    rival = turn("the rival", "was first", at=now())
    memory = another_memory(strata, store=Racing(strata.store, rival))  # type: ignore[arg-type]
    accepted = await memory.begin(ask("second"))
    assert accepted.turn.seq == 3
    context = await accepted.context()
    assert [m.content for m in context.messages[1:]] == ["the rival", "was first", "second"]
    accepted.abandon()


# --- recording -------------------------------------------------------------------------------


async def test_messages_are_recorded_in_order_each_with_its_own_seq(strata: Strata) -> None:
    await say(strata, "hello", "hi")
    recorded = await strata.memory.record(
        USER,
        SESSION,
        [
            Incoming(role="user", content="one", speaker="Bruno"),
            Incoming(role="assistant", content="two"),
            Incoming(role="assistant", content="three"),
        ],
    )
    assert (recorded.accepted, recorded.duplicates, recorded.last_seq) == (3, 0, 5)
    messages = await log_of(strata)
    assert [(m.seq, m.role, m.content) for m in messages[2:]] == [
        (3, "user", "one"), (4, "assistant", "two"), (5, "assistant", "three"),
    ]  # fmt: skip
    assert recorded.message_ids == tuple(m.id for m in messages[2:])
    assert messages[2].speaker == "Bruno"
    assert [m.turn_id for m in messages[2:]] == [None] * 3


async def test_a_known_id_is_recorded_once_in_its_session(strata: Strata) -> None:
    first = [Incoming(role="user", content=f"m{n}", id=f"id{n}") for n in range(3)]
    before = await strata.memory.record(USER, SESSION, first)
    again = await strata.memory.record(
        USER,
        SESSION,
        [first[1], Incoming(role="user", content="new", id="id9"), first[0],
         Incoming(role="user", content="new", id="id9")],
    )  # fmt: skip
    assert (again.accepted, again.duplicates, again.last_seq) == (1, 3, 4)
    assert again.message_ids[0] == before.message_ids[1]
    assert again.message_ids[1] == again.message_ids[3]
    assert [m.content for m in await log_of(strata)] == ["m0", "m1", "m2", "new"]
    elsewhere = await strata.memory.record(USER, "other", first[:1])
    assert (elsewhere.accepted, elsewhere.duplicates) == (1, 0)
    theirs = await strata.memory.record(User("acme", "oskar"), SESSION, first[:1])
    assert (theirs.accepted, theirs.duplicates) == (1, 0)
    assert await strata.memory.record(USER, SESSION, []) == msgspec.structs.replace(
        again, accepted=0, duplicates=0, message_ids=()
    )


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Incoming(role="system", content="obey"), "messages[1].role"),
        (Incoming(role="tool", content="x"), "messages[1].role"),
        (Incoming(role="user", content=" \n"), "messages[1].content"),
    ],
)
async def test_what_cannot_be_recorded_is_named_and_nothing_is_kept(
    strata: Strata, bad: Incoming, field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await strata.memory.record(USER, SESSION, [Incoming(role="user", content="fine"), bad])
    assert (caught.value.field, caught.value.done) == (field, 0)
    assert await log_of(strata) == []


@pytest.mark.parametrize("ids", [True, False])
async def test_a_race_in_the_middle_of_a_batch_records_nothing_twice(
    strata: Strata, ids: bool
) -> None:
    rival = turn("the rival", seq=2, at=now())
    memory = another_memory(strata, store=Racing(strata.store, rival))  # type: ignore[arg-type]
    messages = [
        Incoming(role="user", content=f"m{n}", id=f"id{n}" if ids else None) for n in range(3)
    ]
    recorded = await memory.record(USER, SESSION, messages)
    stored = await log_of(strata)
    assert [m.content for m in stored] == ["m0", "the rival", "m1", "m2"]
    assert (recorded.accepted, recorded.duplicates, recorded.last_seq) == (3, 0, 4)
    assert recorded.message_ids == tuple(m.id for m in stored if m.content != "the rival")


async def test_times_are_kept_as_given_and_expiry_counts_from_recording(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"memory": "1h"}) as strata:
        said = now() - timedelta(days=900)
        await strata.memory.record(
            USER, SESSION, [Incoming(role="user", content="long ago", created_at=said)]
        )
        (stored,) = await strata.store.turns.range(KEY, after=0, limit=9)
        assert stored.created_at == stored.messages[0].created_at == said
        assert stored.expires_at == stored.recorded_at + timedelta(hours=1)
        assert stored.recorded_at > now() - timedelta(minutes=1)


# --- sessions that end -----------------------------------------------------------------------


async def test_an_ended_session_begins_anew_with_the_next_seq_and_is_still_recalled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, ttl={"session": "1s"}) as strata:
        first = await say(strata, "My dog is called Bruno.", "Nice.")
        await strata.caught_up()
        gone = first.recorded_at + timedelta(seconds=1.01)
        await eventually(lambda: now() > gone)
        accepted = await strata.memory.begin(ask("What is my dog called?"))
        context = await accepted.context()
        assert accepted.turn.seq == 3
        assert context.receipt.layers.window.messages == 0
        assert "Bruno" in context.recall_block
        assert [d for d in context.receipt.dropped if d.layer == "window"] == []
        await accepted.finish("Bruno.", status="done")
        messages, before = await strata.history.messages(USER, SESSION, before=None, limit=9)
        assert [m.seq for m in messages] == [3, 4]
        assert before is None


# --- an index that is away (R11), late, or lies (S2) -------------------------------------------


class Raising(IndexAround):
    async def search(self, **query: Any) -> Hits:
        raise IndexUnavailable("away")


class Crashing(IndexAround):
    async def search(self, **query: Any) -> Hits:
        raise KeyError("payload")


class Hanging(IndexAround):
    async def search(self, **query: Any) -> Hits:
        await asyncio.Event().wait()
        raise AssertionError


class HangingSpeakers(IndexAround):
    async def speakers(self, user: str) -> frozenset[str]:
        await asyncio.Event().wait()
        raise AssertionError


class Hostile(IndexAround):
    """Returns everybody's points, whoever asks."""

    def __init__(self, inner: VectorIndex, everybody: Sequence[User]) -> None:
        super().__init__(inner)
        self._everybody = everybody

    async def search(self, **query: Any) -> Hits:
        found = Hits([], [])
        for user in self._everybody:
            hits = await self.inner.search(**{**query, "user": user.key, "session": None})
            found = Hits(found.lexical + hits.lexical, found.dense + hits.dense)
        return found


@pytest.mark.parametrize("broken", [Raising, Crashing, Hanging, HangingSpeakers])
async def test_an_index_that_is_away_costs_recall_and_not_the_answer(
    strata: Strata, broken: type[IndexAround]
) -> None:
    await say(strata, "My dog is called Bruno.")
    await strata.caught_up()
    assert strata.index is not None
    memory = another_memory(strata, index=broken(strata.index), recall={"deadline": "150ms"})
    with quickly(1.0):
        accepted = await memory.begin(ask("What is my dog called?"))
        context = await accepted.context()
    assert context.receipt.degraded == ("recall",)
    assert "Bruno" in context.messages[1].content, "the window is there"
    accepted.abandon()


async def test_a_model_that_hangs_leaves_recall_by_words_within_the_deadline(
    strata: Strata,
) -> None:
    class Stuck(LateModel):
        async def query(self, text: str) -> list[float]:
            await asyncio.Event().wait()
            raise AssertionError

    stuck = Stuck()
    memory = another_memory(strata, embeddings=stuck, recall={"deadline": "100ms"})
    context = await memory.preview(ask("What is my dog called?"))
    assert context.receipt.degraded == ("embedding",)
    stuck.close()


async def test_a_hostile_index_leaks_nothing(strata: Strata) -> None:
    victim, attacker = User("acme", "victim"), User("acme", "attacker")
    await say(strata, "My canary is called Xylophon.", user=victim)
    await say(strata, "My canary is called Bruno.", user=attacker)
    await strata.caught_up()
    assert strata.index is not None
    memory = another_memory(strata, index=Hostile(strata.index, [victim, attacker]))
    context = await memory.preview(ask("canary?", user=attacker, session_id="new"))
    assert "Bruno" in context.recall_block
    assert "Xylophon" not in str(context)
    assert victim.key not in str(context)
    assert any(d.reason == "gone" for d in context.receipt.dropped)


async def test_an_index_that_still_knows_the_dead_resurrects_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "My canary is called Xylophon.")
        await say(strata, "My canary sings.", session="other")
        await strata.caught_up()
        await strata.store.sessions.delete(KEY)
        context = await strata.memory.preview(ask("canary?", session_id="new"))
        assert "sings" in context.recall_block
        assert "Xylophon" not in str(context)


async def test_without_an_index_recall_is_off_and_said_to_be(tmp_path: Path) -> None:
    async with opened(tmp_path, index={"url": "none"}) as strata:
        await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        context = await strata.memory.preview(ask("What is my dog called?", session_id="new"))
        assert context.receipt.degraded == ("recall",)
        assert context.recall_block == ""
