"""One suite over every Store: what memory/stores/base.py promises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from math import inf
from pathlib import Path

import msgspec
import pytest
from unit.builders import NOON, SESSION, USER, dialogue, turn

from contract.sealed import Sealed
from memory.errors import StoreUnavailable
from memory.models import (
    NEVER,
    Segment,
    Session,
    Summary,
    Turn,
    TurnError,
    User,
    new_session,
    session_key,
)
from memory.receipt import Dropped, Layers, Receipt
from memory.stores.base import PoisonedMessage, Signal, Store
from memory.stores.mongo.store import MongoStore
from memory.stores.sqlite.store import SqliteStore

OTHER = User("acme", "oskar")
KEY = session_key(USER.key, SESSION)
MINUTE = timedelta(minutes=1)

Opener = Callable[[], Store]


@pytest.fixture(params=["sqlite", "mongo", "sqlite, sealed", "mongo, sealed"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Makes a store that is not open yet; each call means the same data."""
    kind, _, sealed = request.param.partition(", ")
    codec = Sealed() if sealed else None
    if kind == "sqlite":
        return lambda: SqliteStore(tmp_path / "data" / "strata.db", codec=codec)
    url = request.getfixturevalue("mongo_url")
    # No grace that would delete what is still looked at: the tests' noon is long past.
    return lambda: MongoStore(url, purge_grace_seconds=inf, codec=codec)


@pytest.fixture
async def store(make: Opener) -> AsyncIterator[Store]:
    opened = make()
    await opened.open()
    yield opened
    await opened.close()


def seqs(turns: Sequence[Turn]) -> list[int]:
    return [t.seq for t in turns]


def running(seq: int = 1, **more: object) -> Turn:
    return turn("question", "", seq=seq, status="running", **more)  # type: ignore[arg-type]


def finished(running_turn: Turn, answer: str = "answer") -> Turn:
    assert running_turn.assistant is not None
    message = msgspec.structs.replace(running_turn.assistant, content=answer, status="done")
    return msgspec.structs.replace(running_turn, status="done", assistant=message, receipt=RECEIPT)


RECEIPT = Receipt(
    budget_tokens=100, used_tokens=7, estimated=False, layers=Layers(),
    dropped=(Dropped("window", "budget", 2),), degraded=("recall",), prefix_hash="ab",
    stable_prefix_tokens=3,
)  # fmt: skip


def session(id_: str = SESSION, user: User = USER, **changes: object) -> Session:
    return msgspec.structs.replace(new_session(user.key, id_, NOON), **changes)


# --- turns -----------------------------------------------------------------------------------


async def test_an_open_store_answers_a_ping(store: Store) -> None:
    await store.ping()


async def test_a_closed_store_is_unavailable(make: Opener) -> None:
    closed = make()
    await closed.open()
    await closed.close()
    with pytest.raises(StoreUnavailable):
        await closed.ping()
    with pytest.raises(StoreUnavailable):
        await closed.turns.append([turn("x")])


async def test_a_turn_comes_back_as_it_was_stored(store: Store) -> None:
    at = NOON + timedelta(milliseconds=123)
    whole = msgspec.structs.replace(
        turn("Grüße 👩‍👩‍👧 \u2028 e\u0301 <|endoftext|>", "我很好", at=at, speaker="Zoë"),
        metadata={"a": [1, None, {"$gt": "", "x.y": True}]},
        usage={"prompt_tokens": 3},
        error=TurnError("model_error", "no", True, 1.5),
        prefix_marks=("a", "b"),
        body_hash="cd",
        attempt=2,
        lease_until=at + MINUTE,
        finish_reason="stop",
        receipt=RECEIPT,
    )
    assert await store.turns.append([whole]) == 1
    assert await store.turns.get(whole.id, now=NOON) == whole


async def test_what_was_appended_survives_a_restart(make: Opener) -> None:
    turns = dialogue([("one", "two"), ("three", "four")])
    for n in range(2):
        opened = make()
        await opened.open()
        if n == 0:
            await opened.turns.append(turns)
            await opened.sessions.put(session())
        else:
            assert await opened.turns.range(KEY, after=0, limit=9) == turns
            assert await opened.sessions.get(KEY) == session()
        await opened.close()


async def test_inserting_stops_at_the_first_turn_whose_id_is_taken(store: Store) -> None:
    turns = dialogue([("one", "two"), ("three", "four"), ("five", "six")])
    assert await store.turns.append([turns[1]]) == 1
    assert await store.turns.append(turns) == 1
    assert seqs(await store.turns.range(KEY, after=0, limit=9)) == [1, 3]


async def test_inserting_stops_at_the_first_turn_whose_idempotency_is_taken(
    store: Store,
) -> None:
    assert await store.turns.append([turn("one", seq=1, idempotency="k1")]) == 1
    again = [
        turn("two", seq=2),
        turn("three", seq=3, idempotency="k1"),
        turn("four", seq=4),
    ]
    assert await store.turns.append(again) == 1
    assert seqs(await store.turns.range(KEY, after=0, limit=9)) == [1, 2]


async def test_idempotency_belongs_to_one_user(store: Store) -> None:
    assert await store.turns.append([turn("mine", idempotency="k1")]) == 1
    assert await store.turns.append([turn("theirs", idempotency="k1", user=OTHER)]) == 1
    found = await store.turns.by_idempotency(USER.key, ["k1", "k2"])
    assert {key: t.user.content for key, t in found.items() if t.user} == {"k1": "mine"}
    assert await store.turns.by_idempotency(USER.key, []) == {}


async def test_expired_turns_are_still_known_by_their_idempotency(store: Store) -> None:
    await store.turns.append([turn("old", idempotency="k1", expires=NOON)])
    assert list(await store.turns.by_idempotency(USER.key, ["k1"])) == ["k1"]


async def test_of_many_that_race_for_one_seq_exactly_one_wins(store: Store) -> None:
    racers = [turn(f"racer {n}", idempotency=f"k{n}", token=str(n)) for n in range(50)]
    won = await asyncio.gather(*(store.turns.append([racer]) for racer in racers))
    assert sorted(won) == [0] * 49 + [1]
    stored = await store.turns.get(racers[0].id, now=NOON)
    assert stored == racers[won.index(1)]


async def test_what_has_expired_but_is_there_still_keeps_its_seq(store: Store) -> None:
    old = turn("old", expires=NOON, idempotency="k1")
    await store.turns.append([old])
    assert await store.turns.append([turn("new", idempotency="k2", at=NOON + MINUTE)]) == 0
    assert (await store.turns.load(KEY)).turns == [old], "so that the next one is 2"


async def test_what_was_appended_is_withdrawn_as_long_as_nobody_else_has_it(
    store: Store,
) -> None:
    await store.turns.append([turn("q", "a"), running(3), running(5, token="other")])
    for mine in (running(3), running(5), turn("q", "a"), running(7)):
        await store.turns.withdraw(mine)
    assert seqs((await store.turns.load(KEY)).turns) == [5, 1]
    await store.turns.withdraw(running(5, token="other"))
    assert await store.turns.append([running(3)]) == 1, "its place and its key are free again"


async def test_a_running_turn_is_saved_by_its_own_token_alone(store: Store) -> None:
    mine = running(token="mine")
    await store.turns.append([mine])
    assert not await store.turns.save(
        finished(msgspec.structs.replace(mine, fencing_token="zombie"))
    )
    assert await store.turns.save(msgspec.structs.replace(mine, finish_reason="soon"))
    assert await store.turns.save(finished(mine))
    assert await store.turns.get(mine.id, now=NOON) == finished(mine)
    assert not await store.turns.save(finished(mine, "late")), "it does not run any more"
    assert not await store.turns.save(running(99, token="mine")), "there is no such turn"


def again(ended: Turn, token: str) -> Turn:
    """The turn as it runs once more."""
    assert ended.assistant is not None
    answer = msgspec.structs.replace(ended.assistant, content="", status="running")
    return msgspec.structs.replace(
        ended, status="running", fencing_token=token, attempt=ended.attempt + 1, assistant=answer,
        receipt=None, lease_until=NOON + MINUTE,
    )  # fmt: skip


@pytest.mark.parametrize("status", ["failed", "interrupted"])
async def test_a_turn_that_failed_or_broke_off_runs_again(store: Store, status: str) -> None:
    before = msgspec.structs.replace(running(token="first"), status=status, receipt=RECEIPT)
    await store.turns.append([before])
    await store.work.mark_projected(KEY, through=99)
    assert await store.work.pending() == []
    second = again(before, "second")
    assert await store.turns.rerun(second, was=before)
    assert await store.turns.get(second.id, now=NOON) == second
    assert await store.work.pending() == [KEY]
    assert not await store.turns.save(finished(before)), "the first attempt's token is void"
    assert not await store.turns.rerun(again(before, "third"), was=before), "it runs already"
    assert await store.turns.save(finished(second))
    assert await store.turns.get(second.id, now=NOON) == finished(second)


@pytest.mark.parametrize("status", ["running", "done", "partial"])
async def test_a_turn_that_runs_or_has_an_answer_is_not_run_again(
    store: Store, status: str
) -> None:
    before = msgspec.structs.replace(running(token="first"), status=status)
    await store.turns.append([before])
    assert not await store.turns.rerun(again(before, "second"), was=before)
    assert await store.turns.get(before.id, now=NOON) == before


async def test_a_turn_is_run_again_only_as_it_was_seen(store: Store) -> None:
    before = msgspec.structs.replace(running(token="first"), status="failed")
    await store.turns.append([before])
    assert not await store.turns.rerun(
        again(before, "third"), was=msgspec.structs.replace(before, fencing_token="second")
    )
    gone = msgspec.structs.replace(running(99, token="first"), status="failed")
    assert not await store.turns.rerun(again(gone, "second"), was=gone), "there is no such turn"
    won = await asyncio.gather(
        *(store.turns.rerun(again(before, f"racer {n}"), was=before) for n in range(20))
    )
    assert sorted(won) == [False] * 19 + [True]
    stored = await store.turns.get(before.id, now=NOON)
    assert stored is not None
    assert stored.fencing_token == f"racer {won.index(True)}"


async def test_a_key_that_is_forgotten_can_be_used_again(store: Store) -> None:
    old = msgspec.structs.replace(turn("old", "x", idempotency="k1"), receipt=RECEIPT)
    await store.turns.append([old])
    await store.turns.forget_key(old)
    assert await store.turns.by_idempotency(USER.key, ["k1"]) == {}
    kept = msgspec.structs.replace(old, idempotency=f"t{old.id}")
    assert await store.turns.get(old.id, now=NOON) == kept
    assert await store.turns.append([turn("new", seq=3, idempotency="k1")]) == 1
    await store.turns.forget_key(old)
    assert seqs(list((await store.turns.by_idempotency(USER.key, ["k1"])).values())) == [3]
    await store.turns.forget_key(turn("nobody", seq=9, idempotency="k9"))


async def test_a_running_attempt_learns_what_other_processes_signal(store: Store) -> None:
    """A store of one process has nobody who could signal."""
    mine, other = running(token="first"), running(session="other")
    await store.turns.append([mine])
    await store.turns.append([other])
    await store.signals.send(mine, watched=NOON)
    await store.signals.send(other, cancel=True, watched=None)
    told = await store.signals.read([mine, other, running(99)])
    if store.embedded:
        assert told == {}
        return
    assert told == {mine.id: Signal(False, NOON), other.id: Signal(True, None)}
    await store.signals.send(mine, cancel=True, watched=None)
    assert await store.signals.read([mine]) == {mine.id: Signal(True, NOON)}
    assert await store.turns.get(mine.id, now=NOON) == mine, "a signal is no part of the turn"
    assert await store.turns.save(msgspec.structs.replace(mine, finish_reason="soon"))
    assert (await store.signals.read([mine]))[mine.id].cancel, "and outlives its flushes"


async def test_a_signal_reaches_no_other_attempt_and_none_that_has_ended(store: Store) -> None:
    first = msgspec.structs.replace(running(token="first"), status="failed")
    await store.turns.append([first])
    await store.signals.send(first, cancel=True, watched=NOON)
    for told in (await store.signals.read([first])).values():
        assert told == Signal(False, None), "it has ended"
    second = again(first, "second")
    assert await store.turns.rerun(second, was=first)
    await store.signals.send(first, cancel=True, watched=None)
    await store.signals.send(msgspec.structs.replace(second, attempt=9), cancel=True, watched=None)
    for told in (await store.signals.read([second])).values():
        assert not told.cancel
    await store.signals.send(second, cancel=True, watched=None)
    assert await store.turns.save(msgspec.structs.replace(finished(second), status="failed"))
    third = again(second, "third")
    assert await store.turns.rerun(third, was=second)
    for told in (await store.signals.read([third])).values():
        assert not told.cancel, "the attempt before was cancelled"


async def test_turns_left_running_are_interrupted_with_their_answers_where_nobody_else_writes(
    store: Store,
) -> None:
    left, other = running(3), running(user=OTHER)
    await store.turns.append([turn("one", "two"), left, other])
    assert await store.turns.interrupt_running() == (2 if store.embedded else 0)
    assert await store.turns.interrupt_running() == 0
    stored = await store.turns.get(left.id, now=NOON)
    assert stored is not None
    assert stored.assistant is not None
    expected = "interrupted" if store.embedded else "running"
    assert (stored.status, stored.assistant.status) == (expected, expected)
    assert await store.turns.save(finished(left)) != store.embedded


async def test_reads_hide_what_has_expired(store: Store) -> None:
    old, new = (
        turn("old", "x", seq=1, expires=NOON + MINUTE),
        turn("new", "y", seq=3, at=NOON + MINUTE),
    )
    await store.turns.append([old, new])
    for moment, visible in ((NOON, [1, 3]), (NOON + MINUTE, [3])):
        assert (await store.turns.get(old.id, now=moment) is not None) == (1 in visible)
        found = await store.turns.get_many([old.id, new.id, "unknown"], now=moment)
        assert sorted(seqs(list(found.values()))) == visible
        page = await store.turns.history(KEY, now=moment, before=None, first=1, limit=9)
        assert seqs(page) == visible[::-1]
        assert seqs(await store.turns.of_user(USER.key, now=moment, limit=9)) == visible[::-1]
    assert await store.turns.get_many([], now=NOON) == {}


async def test_only_a_single_turn_comes_with_its_receipt(store: Store) -> None:
    whole = msgspec.structs.replace(turn("one", "two"), receipt=RECEIPT)
    await store.turns.append([whole])
    bare = msgspec.structs.replace(whole, receipt=None)
    assert (await store.turns.get_many([whole.id], now=NOON))[whole.id] == bare
    assert (await store.turns.load(KEY)).turns == [bare]
    assert await store.turns.history(KEY, now=NOON, before=None, first=1, limit=9) == [bare]
    assert await store.turns.get(whole.id, now=NOON) == whole


async def test_an_unknown_session_loads_as_nothing(store: Store) -> None:
    assert await store.turns.load("nobody.nothing") == (None, [])
    assert await store.sessions.get("nobody.nothing") is None


async def test_loading_gives_the_newest_turns_back_to_the_summary(store: Store) -> None:
    turns = dialogue([("q", "a")] * 10, expires=NOON)
    await store.turns.append(turns)
    assert seqs((await store.turns.load(KEY)).turns) == list(range(19, 0, -2)), (
        "expired ones included"
    )
    assert seqs((await store.turns.load(KEY, limit=3)).turns) == [19, 17, 15]
    for covered, after in ((0, 10), (8, 6), (19, 1), (20, 1)):
        summary = Summary(version=1, covers_through=covered)
        await store.sessions.put(session())
        await store.sessions.change(KEY, {"summary": summary})
        loaded = await store.turns.load(KEY)
        assert loaded.session is not None
        assert loaded.session.summary == summary
        expected = list(range(19, 0, -2))
        assert seqs(loaded.turns) == expected[: len(loaded.turns)]
        assert after <= len(loaded.turns) <= after + 1


async def test_loading_goes_as_far_back_as_the_summary_is_behind(store: Store) -> None:
    await store.turns.append(dialogue([("q", "a")] * 80))
    await store.sessions.put(session())
    for covered, size in ((0, 80), (20, 71), (60, 51), (62, 50), (80, 41), (160, 1)):
        summary = Summary(version=1, covers_through=covered)
        await store.sessions.change(KEY, {"summary": summary})
        found = seqs((await store.turns.load(KEY)).turns)
        assert found == list(range(159, 0, -2))[:size]
        assert seqs((await store.turns.load(KEY, limit=60)).turns) == found[:60]


async def test_history_pages_backwards(store: Store) -> None:
    await store.turns.append(dialogue([("q", "a")] * 5))
    await store.turns.append(dialogue([("q", "a")], session="other"))

    async def page(before: int | None, first: int = 1, limit: int = 2) -> list[int]:
        found = await store.turns.history(KEY, now=NOON, before=before, first=first, limit=limit)
        return seqs(found)

    assert await page(None) == [9, 7]
    assert await page(7) == [5, 3]
    assert await page(3) == [1]
    assert await page(1) == []
    assert await page(None, first=5, limit=9) == [9, 7, 5]


async def test_a_range_goes_forward_and_knows_expired_turns(store: Store) -> None:
    turns = [
        turn("q", "a", seq=1, expires=NOON),
        turn("told", seq=3),
        turn("q", "a", seq=4),
        running(6),
    ]
    await store.turns.append(turns)
    for after, expected in ((0, [1, 3, 4, 6]), (1, [1, 3, 4, 6]), (2, [3, 4, 6]), (4, [4, 6]),
                            (5, [6]), (6, [6]), (7, [])):  # fmt: skip
        assert seqs(await store.turns.range(KEY, after=after, limit=9)) == expected
    assert seqs(await store.turns.range(KEY, after=0, limit=2)) == [1, 3]


async def test_a_users_turns_are_paged_by_the_time_they_were_said(store: Store) -> None:
    rng = random.Random(7)
    mine = [
        turn("q", "a", seq=1 + 2 * n, at=NOON + rng.randint(0, 3) * MINUTE, session=name)
        for name in ("one", "two")
        for n in range(6)
    ]
    for name in ("one", "two"):
        await store.turns.append([t for t in mine if t.session_id == name])
    await store.turns.append(dialogue([("theirs", "x")] * 3, user=OTHER))
    expected = sorted(mine, key=lambda t: (t.created_at, t.id), reverse=True)

    found: list[Turn] = []
    before: tuple[datetime, str] | None = None
    while True:
        page = await store.turns.of_user(USER.key, now=NOON, limit=5, before=before)
        found += page
        if len(page) < 5:
            break
        before = (page[-1].created_at, page[-1].id)
    assert found == expected

    since, until = NOON + MINUTE, NOON + 3 * MINUTE
    within = await store.turns.of_user(
        USER.key, now=NOON, limit=99, session_key=session_key(USER.key, "one"), since=since,
        until=until,
    )  # fmt: skip
    assert within == [
        t for t in expected if t.session_id == "one" and since <= t.created_at < until
    ]


# --- what is pending -------------------------------------------------------------------------


async def test_appended_turns_are_pending_oldest_session_first(store: Store) -> None:
    for n, name in enumerate(("late", "early", "middle")):
        at = NOON + {"late": 3, "early": 1, "middle": 2}[name] * MINUTE
        await store.turns.append([turn("q", "a", session=name, at=at)])
        assert n < 3
    await store.turns.append([turn("q", "a", user=OTHER, at=NOON)])
    keys = [session_key(USER.key, name) for name in ("early", "middle", "late")]
    assert await store.work.pending() == [session_key(OTHER.key, SESSION), *keys]
    assert await store.work.pending(user_key=USER.key) == keys
    assert await store.work.pending(limit=2) == [session_key(OTHER.key, SESSION), keys[0]]


async def test_a_session_stays_pending_until_all_its_finished_turns_are_settled(
    store: Store,
) -> None:
    await store.turns.append(dialogue([("q", "a")] * 3))
    await store.work.mark_projected(KEY, through=3)
    assert await store.work.pending() == [KEY]
    await store.work.mark_projected(KEY, through=5)
    assert await store.work.pending() == [KEY], "the last turn ends at 6"
    await store.work.mark_projected(KEY, through=6)
    assert await store.work.pending() == []


async def test_a_turn_that_ran_again_is_settled_only_at_the_attempt_that_was_seen(
    store: Store,
) -> None:
    first = msgspec.structs.replace(running(3), status="interrupted")
    await store.turns.append([turn("q", "a"), first, turn("told", seq=5)])
    second = again(first, "second")
    assert await store.turns.rerun(second, was=first)
    assert await store.work.pending_reruns(KEY, through=9, limit=9) == [], "it runs"
    await store.turns.save(finished(second))
    bare = msgspec.structs.replace(finished(second), receipt=None)
    await store.work.mark_projected(KEY, through=9)
    assert await store.work.pending() == [KEY], "nobody has said which attempt was seen"
    await store.work.mark_projected(KEY, through=9, reruns={first.id: 1})
    await store.work.mark_projected(KEY, through=3, reruns={first.id: 2})
    for through, expected in ((4, [bare]), (3, []), (9, [bare])):
        assert await store.work.pending_reruns(KEY, through=through, limit=9) == expected
    await store.work.mark_projected(KEY, through=4, reruns={first.id: 2})
    assert await store.work.pending() == []
    assert await store.work.pending_reruns(KEY, through=9, limit=9) == []


async def test_running_turns_whose_lease_has_ended_are_found(store: Store) -> None:
    late, in_time, ended = (
        msgspec.structs.replace(made, lease_until=NOON + timedelta(seconds=seconds))
        for made, seconds in ((running(1), 1), (running(3), 9), (turn("q", "a", seq=5), 1))
    )
    await store.turns.append([late, in_time, ended, turn("recorded", seq=7)])
    assert await store.turns.overdue(before=NOON + timedelta(seconds=1)) == []
    assert await store.turns.overdue(before=NOON + timedelta(seconds=2)) == [late]
    assert seqs(await store.turns.overdue(before=NOON + timedelta(seconds=10))) == [1, 3]
    assert len(await store.turns.overdue(before=NOON + timedelta(seconds=10), limit=1)) == 1


async def test_how_long_the_oldest_ended_turn_is_pending(store: Store) -> None:
    assert await store.work.pending_since() is None
    mine = running(token="mine")
    later = turn("q", "a", user=OTHER, at=NOON + MINUTE)
    await store.turns.append([mine])
    assert await store.work.pending_since() is None, "it runs"
    await store.turns.append([later])
    assert await store.work.pending_since() == NOON + MINUTE
    await store.turns.save(finished(mine))
    assert await store.work.pending_since() == NOON
    await store.work.mark_projected(KEY, through=2)
    assert await store.work.pending_since() == NOON + MINUTE
    await store.work.mark_projected(later.session_key, through=2)
    assert await store.work.pending_since() is None


# --- what was set aside ----------------------------------------------------------------------


async def test_what_was_set_aside_is_listed_until_its_turn_goes(make: Opener) -> None:
    store = make()
    await store.open()
    mine = running()
    kept = turn("q", "a", seq=3, expires=NOON + MINUTE)
    await store.turns.append([mine, kept, turn("q", "a", user=OTHER)])
    assert await store.work.poisoned() == []
    listed = []
    for n, message in enumerate((*mine.messages, kept.messages[1])):
        at = NOON + (n // 2) * MINUTE
        assert await store.work.mark_poisoned(message.id, reason=f"r{n}", now=at)
        listed.append(PoisonedMessage(message.id, f"r{n}", at))
    assert not await store.work.mark_poisoned(f"{KEY}:0000000099.u", reason="gone", now=NOON)
    assert sorted(await store.work.poisoned()) == sorted(listed)
    assert await store.work.poisoned(limit=2) == (await store.work.poisoned())[:2]
    # It outlives what is written to its turn, and a restart.
    assert await store.turns.save(finished(mine))
    await store.work.mark_projected(KEY, through=9)
    await store.close()
    store = make()
    await store.open()
    assert sorted(await store.work.poisoned()) == sorted(listed)
    await store.turns.delete_expired([KEY], before=NOON + MINUTE)
    assert sorted(await store.work.poisoned()) == sorted(listed[:2])
    await store.sessions.delete(KEY)
    assert await store.work.poisoned() == []
    await store.close()


async def test_a_message_is_set_aside_once(store: Store) -> None:
    (message,) = turn("q").messages
    await store.turns.append([turn("q")])
    for n in range(3):
        assert await store.work.mark_poisoned(message.id, reason=f"{n}", now=NOON + n * MINUTE)
    assert await store.work.poisoned() == [PoisonedMessage(message.id, "2", NOON + 2 * MINUTE)]


@pytest.mark.parametrize("how", ["rerun", "unsettle", "reset"])
async def test_what_is_projected_anew_is_not_aside_any_more(store: Store, how: str) -> None:
    failed = msgspec.structs.replace(running(), status="failed")
    await store.turns.append([failed])
    await store.work.mark_poisoned(failed.messages[0].id, reason="r", now=NOON)
    await store.work.mark_dense_pending(reset=False)
    assert not await store.turns.rerun(
        again(failed, "x"), was=msgspec.structs.replace(failed, fencing_token="else")
    )
    assert len(await store.work.poisoned()) == 1
    if how == "rerun":
        assert await store.turns.rerun(again(failed, "second"), was=failed)
    elif how == "unsettle":
        await store.work.mark_all_pending()
    else:
        await store.work.mark_dense_pending(reset=True)
    assert await store.work.poisoned() == []


async def test_a_running_turn_is_never_settled(store: Store) -> None:
    mine = running()
    await store.turns.append([mine])
    await store.work.mark_projected(KEY, through=99)
    assert await store.work.pending() == [KEY]
    assert await store.work.pending(finished=True) == []
    await store.turns.save(finished(mine))
    assert await store.work.pending() == [KEY], "its answer was not seen by anyone"
    assert await store.work.pending(finished=True) == [KEY]
    await store.work.mark_projected(KEY, through=2)
    assert await store.work.pending() == []


async def test_unsettling_makes_everything_pending_and_sets_the_watermarks_back(
    store: Store,
) -> None:
    await store.turns.append(dialogue([("q", "a")] * 2))
    await store.sessions.put(session(last_seq=4, lexical_through=4, dense_through=4))
    await store.work.mark_projected(KEY, through=4)
    await store.work.mark_all_pending()
    assert await store.work.pending() == [KEY]
    stored = await store.sessions.get(KEY)
    assert stored is not None
    assert (stored.lexical_through, stored.dense_through) == (0, 0)
    await store.work.mark_projected(KEY, through=2)
    assert await store.work.pending() == [KEY], "every turn is pending, not only the newest"


async def test_pages_of_work_are_complete(store: Store) -> None:
    many = [turn("q", "a", seq=1 + 2 * n, at=NOON + n % 3 * MINUTE) for n in range(450)]
    later = [turn("q", session=f"s{n}", at=NOON + n % 4 * MINUTE) for n in range(20)]
    assert await store.turns.append(many) == len(many)
    for one in later:
        await store.turns.append([one])
    await store.sessions.put(session(last_seq=900, lexical_through=900, dense_through=900))
    later.sort(key=lambda one: one.recorded_at)
    assert set(await store.work.pending()) == {KEY, *(one.session_key for one in later)}
    assert len(await store.work.pending(limit=7)) == 7
    await store.work.mark_projected(KEY, through=900)
    assert KEY not in await store.work.pending()
    await store.work.mark_dense_pending(reset=True)
    await store.work.mark_projected(KEY, through=898)
    assert KEY in await store.work.pending(), "the last of many is pending"
    await store.work.mark_projected(KEY, through=900)
    await store.work.mark_all_pending()
    assert KEY in await store.work.pending(user_key=USER.key)
    assert await store.sessions.delete(KEY) == len(many)
    assert await store.turns.range(KEY, after=0, limit=9) == []
    assert len(await store.work.pending()) == len(later)


@pytest.mark.parametrize(("reset", "back"), [(False, 2), (True, 0)])
async def test_turns_without_dense_vectors_are_made_pending(
    store: Store, reset: bool, back: int
) -> None:
    for name, dense in (("some", 2), ("all", 4)):
        key = session_key(USER.key, name)
        await store.turns.append(dialogue([("q", "a")] * 2, session=name))
        await store.sessions.put(session(name, last_seq=4, lexical_through=4, dense_through=dense))
        await store.work.mark_projected(key, through=4)
    await store.work.mark_dense_pending(reset=reset)
    some, whole = (session_key(USER.key, name) for name in ("some", "all"))
    assert set(await store.work.pending()) == ({some, whole} if reset else {some})
    stored = await store.sessions.get(some)
    assert stored is not None
    assert (stored.lexical_through, stored.dense_through) == (4, back)


# --- sessions --------------------------------------------------------------------------------


async def test_a_session_comes_back_as_it_was_stored(store: Store) -> None:
    whole = session(
        title="Grüße 👋", updated_at=NOON + MINUTE, first_seq=3, last_seq=8,
        summary=Summary(text="我", version=2, covers_through=4, retired=1, tokens=9, degraded=True,
                        expires_at=NOON),
        lexical_through=6, dense_through=4, facts_through=2, expires_at=NEVER, ttl_seconds=1.5,
        metadata={"a": {"b": [1, None]}},
    )  # fmt: skip
    assert await store.sessions.put(whole)
    assert await store.sessions.get(KEY) == whole


async def test_a_session_is_inserted_once(store: Store) -> None:
    assert await store.sessions.put(session(title="first"))
    assert not await store.sessions.put(session(title="second"))
    stored = await store.sessions.get(KEY)
    assert stored is not None
    assert stored.title == "first"


async def test_fields_of_a_session_are_set_and_the_others_stay(store: Store) -> None:
    assert not await store.sessions.change(KEY, {"title": "nobody"})
    assert await store.sessions.get(KEY) is None
    await store.sessions.put(session(metadata={"a": 1}))
    assert await store.sessions.change(KEY, {"title": "new", "last_seq": 4})
    assert await store.sessions.get(KEY) == session(title="new", last_seq=4, metadata={"a": 1})


async def test_a_summary_is_replaced_only_from_the_version_that_was_read(store: Store) -> None:
    await store.sessions.put(session())
    rolled = [Summary(text=f"by {n}", version=1, covers_through=2) for n in range(10)]
    won = await asyncio.gather(
        *(store.sessions.change(KEY, {"summary": s}, unchanged=session()) for s in rolled)
    )
    assert sorted(won) == [False] * 9 + [True]
    stored = await store.sessions.get(KEY)
    assert stored is not None
    assert stored.summary == rolled[won.index(True)]
    assert not await store.sessions.change(KEY, {"summary": rolled[0]}, unchanged=session())
    second = Summary(version=2, unfiled=segment(1))
    assert await store.sessions.change(KEY, {"summary": second}, unchanged=stored)
    assert await store.sessions.get(KEY) == session(summary=second)


@pytest.mark.parametrize(
    "meanwhile", [{"created_at": NOON + MINUTE}, {"first_seq": 7}, {"erasing": True}]
)
async def test_a_summary_is_not_replaced_in_another_life_of_its_session(
    store: Store, meanwhile: dict[str, object]
) -> None:
    await store.sessions.put(session(**meanwhile))
    rolled = {"summary": Summary(text="of before", version=1)}
    assert not await store.sessions.change(KEY, rolled, unchanged=session())
    assert await store.sessions.get(KEY) == session(**meanwhile)


async def test_sessions_are_paged_by_their_last_activity(store: Store) -> None:
    whole = [
        session(f"s{n}", updated_at=NOON + (n // 2) * MINUTE, erasing=n == 3) for n in range(7)
    ]
    for item in whole:
        await store.sessions.put(item)
    await store.sessions.put(session("theirs", OTHER))
    expected = sorted(whole, key=lambda s: (s.updated_at, s.key), reverse=True)
    first = await store.sessions.page(USER.key, before=None, limit=4)
    rest = await store.sessions.page(
        USER.key, before=(first[-1].updated_at, first[-1].key), limit=9
    )
    assert [*first, *rest] == expected


async def test_a_change_moves_a_session_in_the_order(store: Store) -> None:
    for name in ("a", "b"):
        await store.sessions.put(session(name, updated_at=NOON))
    await store.sessions.change(session("a").key, {"updated_at": NOON + MINUTE})
    found = await store.sessions.page(USER.key, before=None, limit=9)
    assert [s.session_id for s in found] == ["a", "b"]


async def test_ended_sessions_are_those_past_their_time_and_those_being_erased(
    store: Store,
) -> None:
    await store.sessions.put(session("living", expires_at=NOON + MINUTE))
    await store.sessions.put(session("for ever"))
    await store.sessions.put(session("over", expires_at=NOON))
    await store.sessions.put(session("erased", erasing=True))
    found = await store.sessions.ended(before=NOON)
    assert {s.session_id for s in found} == {"over", "erased"}
    assert len(await store.sessions.ended(before=NOON, limit=1)) == 1


# --- claims ----------------------------------------------------------------------------------


async def claimed(store: Store, worker: str, *, minute: int = 0, until: int = 2) -> bool:
    return await store.sessions.claim(
        KEY, worker=worker, until=NOON + until * MINUTE, now=NOON + minute * MINUTE
    )


async def test_a_session_is_claimed_by_one_worker_until_it_gives_it_back(store: Store) -> None:
    assert not await claimed(store, "a"), "there is no such session"
    await store.sessions.put(session())
    assert await claimed(store, "a")
    assert await claimed(store, "a"), "claimed again, it is prolonged"
    await store.sessions.release(KEY, worker="b")
    alone = store.embedded  # then there is nobody who could ask
    assert await claimed(store, "b") == alone, "b had nothing to give back"
    await store.sessions.release(KEY, worker="a")
    assert await claimed(store, "b")
    await store.sessions.release("nobody.nothing", worker="b")


async def test_a_claim_ends_at_its_time(store: Store) -> None:
    await store.sessions.put(session())
    assert await claimed(store, "a", until=2)
    assert await claimed(store, "b", minute=1, until=5) == store.embedded
    assert await claimed(store, "a", minute=1, until=3)
    assert await claimed(store, "b", minute=2, until=5) == store.embedded, "it was prolonged"
    assert await claimed(store, "b", minute=3, until=5)
    await store.sessions.release(KEY, worker="a")
    assert await claimed(store, "a", minute=4) == store.embedded, "it is b's by now"


async def test_a_claim_is_no_part_of_the_session_and_outlives_its_changes(
    store: Store,
) -> None:
    await store.sessions.put(session())
    await claimed(store, "a")
    assert await store.sessions.get(KEY) == session()
    await store.sessions.change(KEY, {"title": "new", "summary": Summary(version=1)})
    assert not await store.sessions.put(session())
    assert await claimed(store, "b") == store.embedded
    assert await claimed(store, "a")


async def test_of_many_that_claim_a_session_one_has_it(store: Store) -> None:
    await store.sessions.put(session())
    won = await asyncio.gather(*(claimed(store, f"worker {n}") for n in range(20)))
    assert sum(won) == (20 if store.embedded else 1)


# --- segments, deleting ----------------------------------------------------------------------


def segment(first: int, text: str = "said", expires: datetime = NEVER, key: str = KEY) -> Segment:
    return Segment(session_key=key, first_seq=first, last_seq=first + 3, text=text,
                   expires_at=expires, begun=NOON)  # fmt: skip


async def test_segments_are_replaced_by_their_first_seq_and_read_in_order(
    store: Store,
) -> None:
    for item in (segment(5), segment(1, "old"), segment(1, "new"), segment(9, expires=NOON)):
        await store.segments.put(item)
    await store.segments.put(segment(1, "other session", key="other"))
    assert await store.segments.of(KEY, now=NOON) == [segment(1, "new"), segment(5)]
    await store.segments.delete(KEY)
    assert await store.segments.of(KEY, now=NOON) == []
    assert len(await store.segments.of("other", now=NOON)) == 1


@pytest.mark.parametrize("through", [None, 4])
async def test_deleting_a_session_takes_its_turns_and_segments_and_nobody_elses(
    store: Store, through: int | None
) -> None:
    for user in (USER, OTHER):
        key = session_key(user.key, SESSION)
        await store.turns.append(dialogue([("q", "a")] * 3, user=user))
        await store.sessions.put(session(user=user))
        await store.segments.put(segment(1, key=key))
    assert await store.sessions.delete(KEY, through=through) == (3 if through is None else 2)
    assert seqs(await store.turns.range(KEY, after=0, limit=9)) == ([] if through is None else [5])
    assert await store.segments.of(KEY, now=NOON) == []
    assert (await store.sessions.get(KEY) is not None) == (through is not None)
    theirs = session_key(OTHER.key, SESSION)
    assert len(await store.turns.range(theirs, after=0, limit=9)) == 3
    assert len(await store.segments.of(theirs, now=NOON)) == 1
    assert await store.sessions.get(theirs) is not None
    assert await store.sessions.delete(KEY) == (0 if through is None else 1)


async def test_what_has_expired_is_found_and_deleted(store: Store) -> None:
    await store.turns.append(
        [
            turn("old", "x", seq=1, expires=NOON),
            turn("new", "y", seq=3, expires=NOON + MINUTE),
        ]
    )
    await store.turns.append([turn("young", session="young")])
    await store.segments.put(segment(1, expires=NOON))
    await store.segments.put(segment(5, expires=NOON + MINUTE))
    assert await store.sessions.with_expired_turns(before=NOON - MINUTE) == []
    assert await store.sessions.with_expired_turns(before=NOON) == [KEY]
    assert await store.turns.delete_expired(["another"], before=NOON) == 0
    assert await store.turns.delete_expired([KEY, "another"], before=NOON) == 1
    assert seqs(await store.turns.range(KEY, after=0, limit=9)) == [3]
    assert await store.segments.of(KEY, now=NOON - MINUTE) == [segment(5, expires=NOON + MINUTE)]
    assert await store.turns.delete_expired([KEY], before=NOON) == 0
    assert await store.sessions.with_expired_turns(before=NOON) == []


async def test_only_a_session_without_turns_is_forgotten(store: Store) -> None:
    await store.turns.append(dialogue([("q", "a")]))
    await store.sessions.put(session())
    await store.segments.put(segment(1))
    assert not await store.sessions.delete_if_empty(KEY)
    assert await store.sessions.get(KEY) == session()
    assert await store.turns.delete_expired([KEY], before=NEVER) == 1
    assert await store.sessions.delete_if_empty(KEY)
    assert await store.sessions.get(KEY) is None
    assert await store.segments.of(KEY, now=NOON) == []
    assert await store.sessions.delete_if_empty("nobody.nothing")


async def test_a_deleted_seq_can_be_used_again(store: Store) -> None:
    await store.turns.append([turn("first life")])
    await store.sessions.delete(KEY)
    assert await store.turns.append([turn("second life")]) == 1
