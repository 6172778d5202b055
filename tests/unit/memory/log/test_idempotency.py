"""R7 below HTTP: what a key repeats, what runs again, and who gives way to whom."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import PATIENCE_SECONDS

from memory import Incoming, Strata, TurnRequest, User
from memory.errors import (
    Answered,
    KeyReused,
    SessionBusy,
    StoreUnavailable,
    TurnLost,
    TurnRunning,
    TurnSuperseded,
)
from memory.log.idempotency import KEPT
from memory.models import Turn, TurnError, now, session_key
from memory.open_turn import OpenTurn
from memory.orchestrator import Memory
from memory.stores.base import Store
from unit.builders import (
    SESSION,
    USER,
    StoreAround,
    another_memory,
    expired,
    late_write_is_lost,
    opened,
    turn,
)

KEY = session_key(USER.key, SESSION)
SOON = timedelta(seconds=3)
FAILED = TurnError("model_error", "the model failed", True)


def ask(question: str = "What is it?", *, key: str | None = "k", **more: Any) -> TurnRequest:
    given = {
        "user": USER, "session_id": SESSION, "question": question, "recall": "none",
        "idempotency_key": key, "body_hash": question if key else "",
    }  # fmt: skip
    return TurnRequest(**{**given, **more})


class Other(StoreAround):
    """The store as one of several workers sees it; `acts` happen before or after the next call
    of a method, as in `{"after_rerun": act}`."""

    def __init__(self, inner: Store, **acts: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(inner, embedded=False)
        self.acts = acts

    async def _act(self, when: str) -> None:
        if act := self.acts.pop(when, None):
            await act()

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        name = name.rpartition(".")[2]
        await self._act(f"before_{name}")
        result = await method(*given, **named)
        await self._act(f"after_{name}")
        return result


def worker(
    strata: Strata, store: Any = None, *, ttl: dict[str, Any] | None = None, **session: Any
) -> Memory:
    """A worker of its own over the same files."""
    return another_memory(
        strata, store=store or Other(strata.store), session=session, ttl=ttl or {}
    )


async def end(
    memory: Memory, accepted: OpenTurn, text: str = "An answer.", status: str = "done"
) -> Turn:
    await accepted.context()
    error = FAILED if status == "failed" else None
    return await accepted.finish(text, status=status, error=error)  # type: ignore[arg-type]


async def say(memory: Memory, question: str, key: str | None = None) -> Turn:
    return await end(memory, await memory.begin(ask(question, key=key)))


async def fail(memory: Memory, text: str = "half an") -> Turn:
    return await end(memory, await memory.begin(ask()), text, "failed")


async def log_of(strata: Strata) -> list[Turn]:
    return await strata.store.turns.range(KEY, after=0, limit=99)


# --- what is repeated -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["done", "partial"])
async def test_a_turn_with_an_answer_is_given_again(strata: Strata, status: str) -> None:
    first = await end(strata.memory, await strata.memory.begin(ask()), "An answer.", status)
    for memory in (strata.memory, worker(strata)):
        with pytest.raises(Answered) as again:
            await memory.begin(ask())
        assert again.value.turn == first
    await say(strata.memory, "something else")
    with pytest.raises(Answered):
        await strata.memory.begin(ask())
    assert len(await log_of(strata)) == 2


async def test_a_key_belongs_to_one_request_and_one_user(strata: Strata) -> None:
    await say(strata.memory, "What is it?", "k")
    for other in (
        ask("What is that?"),
        ask("What is that?", session_id="new"),
        ask(body_hash="other"),
    ):
        with pytest.raises(KeyReused):
            await strata.memory.begin(other)
    theirs = await strata.memory.begin(ask(user=User("acme", "oskar")))
    assert theirs.turn.seq == 1
    theirs.abandon()
    assert len(await log_of(strata)) == 1


async def test_a_failed_turn_runs_again_with_its_question_once_in_the_prompt(
    strata: Strata,
) -> None:
    await say(strata.memory, "My dog is called Bruno.")
    first = await fail(strata.memory)
    again = await strata.memory.begin(ask())
    assert (again.turn.id, again.turn.user, again.turn.attempt) == (first.id, first.user, 2)
    assert again.turn.fencing_token != first.fencing_token
    assert again.turn.recorded_at == first.recorded_at, "its 24 hours go on"
    stored = await strata.store.turns.get(first.id, now=now())
    assert stored == again.turn
    assert stored.assistant is not None
    assert (stored.status, stored.assistant.content, stored.error) == ("running", "", None)
    context = await again.context()
    said = [m.content for m in context.messages[1:]]
    assert said == ["My dog is called Bruno.", "An answer.", "What is it?"]
    done = await end(strata.memory, again)
    with pytest.raises(Answered) as answered:
        await strata.memory.begin(ask())
    assert answered.value.turn == done
    assert [t.seq for t in await log_of(strata)] == [1, 3]


async def test_a_turn_runs_again_as_often_as_it_fails(strata: Strata) -> None:
    for attempt in range(1, 5):
        memory = strata.memory if attempt % 2 else worker(strata)
        assert (await fail(memory)).attempt == attempt
    assert (await say(strata.memory, "What is it?", "k")).attempt == 5
    assert [t.attempt for t in await log_of(strata)] == [5]


async def test_what_its_process_has_given_up_runs_again_at_once(strata: Strata) -> None:
    """Whatever the lease says: who gave it up knows it."""
    mine = worker(strata)
    lost = await mine.begin(ask())
    await lost.flush("half an")
    lost.abandon()
    with pytest.raises(TurnRunning):
        await worker(strata).begin(ask())
    again = await mine.begin(ask())
    assert (again.turn.id, again.turn.attempt) == (lost.turn.id, 2)
    assert await late_write_is_lost(strata, lost)
    await end(mine, again)


async def test_a_turn_that_runs_elsewhere_is_told_at_once_until_its_lease_is_over(
    strata: Strata,
) -> None:
    theirs = await worker(strata).begin(ask())
    mine = worker(strata, wait="30s")
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(TurnRunning) as told:
            await mine.begin(ask())
    assert told.value.turn_id == theirs.turn.id
    assert told.value.retry_after_seconds > 0
    over = msgspec.structs.replace(theirs.turn, lease_until=now() - SOON)
    assert await strata.store.turns.save(over)
    again = await mine.begin(ask())
    assert (again.turn.id, again.turn.attempt) == (theirs.turn.id, 2)
    await end(mine, again)


async def test_a_duplicate_of_a_running_turn_does_not_wait_in_its_own_process_either(
    strata: Strata,
) -> None:
    running = await strata.memory.begin(ask())
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(TurnRunning):
            await strata.memory.begin(ask())
    await end(strata.memory, running)


async def test_twenty_duplicates_at_once_are_one_turn(strata: Strata) -> None:
    async def one(memory: Memory) -> str:
        try:
            accepted = await memory.begin(ask())
        except (Answered, TurnRunning) as told:
            return type(told).__name__
        await asyncio.sleep(0)
        await end(memory, accepted)
        return "ran"

    workers = [worker(strata) for _ in range(4)]
    told = await asyncio.gather(*(one(workers[n % 4]) for n in range(20)))
    assert told.count("ran") == 1
    (only,) = await log_of(strata)
    assert (only.status, only.attempt) == ("done", 1)


async def test_a_turn_that_the_session_has_left_behind_is_not_run_again(strata: Strata) -> None:
    first = await fail(strata.memory)
    await say(strata.memory, "never mind")
    for memory in (strata.memory, worker(strata)):
        with pytest.raises(TurnSuperseded) as told:
            await memory.begin(ask())
        assert told.value.turn_id == first.id
    assert await strata.store.turns.get(first.id, now=now()) == first
    assert (await say(strata.memory, "and now?")).seq == 5, "the session is free"


async def test_recorded_messages_leave_a_failed_turn_behind_too(strata: Strata) -> None:
    await fail(strata.memory)
    await strata.memory.record(USER, SESSION, [Incoming(role="user", content="told")])
    with pytest.raises(TurnSuperseded):
        await strata.memory.begin(ask())


# --- what does not count any more ---------------------------------------------------------------


@pytest.mark.parametrize("old", ["day", "expired"])
async def test_an_old_key_counts_as_new(strata: Strata, old: str) -> None:
    moment = now()
    before = turn("before", "then", at=moment - KEPT, idempotency="kk")
    if old == "expired":
        before = turn("before", "then", at=moment, expires=moment, idempotency="kk")
    await strata.store.turns.append([before])
    accepted = await strata.memory.begin(ask())
    assert (accepted.turn.seq, accepted.turn.attempt) == (3, 1)
    done = await end(strata.memory, accepted)
    with pytest.raises(Answered) as again:
        await strata.memory.begin(ask())
    assert again.value.turn == done
    kept, _ = await log_of(strata)
    assert kept == msgspec.structs.replace(before, idempotency=f"t{before.id}")


async def test_a_key_counts_until_its_day_is_over(strata: Strata) -> None:
    young = turn("before", "then", at=now() - KEPT + SOON * 100, idempotency="kk")
    await strata.store.turns.append([msgspec.structs.replace(young, body_hash="What is it?")])
    with pytest.raises(Answered):
        await strata.memory.begin(ask())


async def test_the_answer_of_a_session_that_has_ended_is_not_given_again(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"session": "1s", "memory": "session"}) as strata:
        first = await say(strata.memory, "What is it?", "k")
        await strata.caught_up()
        await expired(first.recorded_at + timedelta(seconds=1))
        accepted = await strata.memory.begin(ask())
        assert (accepted.turn.seq, accepted.turn.attempt) == (3, 1)
        accepted.abandon()


async def test_a_failed_turn_of_a_session_that_began_anew_is_not_run_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, ttl={"session": "1s"}) as strata:
        first = await fail(strata.memory)
        await strata.caught_up()
        await expired(first.recorded_at + timedelta(seconds=1))
        with pytest.raises(TurnSuperseded):
            await strata.memory.begin(ask())


async def test_an_erased_turn_is_forgotten_with_its_key(strata: Strata) -> None:
    await say(strata.memory, "What is it?", "k")
    await strata.history.delete_session(USER, SESSION)
    accepted = await strata.memory.begin(ask())
    assert (accepted.turn.seq, accepted.turn.attempt) == (1, 1)
    accepted.abandon()


# --- who is cut off -------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before_append", "after_append", "after_get"])
@pytest.mark.parametrize("fault", ["cancelled", "store away"])
async def test_a_request_that_breaks_off_while_it_is_accepted_blocks_nobody(
    strata: Strata, when: str, fault: str
) -> None:
    """After a failed turn, so that the accept looks back; its retry never asks twice."""
    await fail(strata.memory)
    store = Other(strata.store)
    mine = worker(strata, store)

    async def break_off() -> None:
        if fault == "store away":
            raise StoreUnavailable("away")
        task.cancel()
        await asyncio.sleep(0)

    store.acts[when] = break_off
    task = asyncio.create_task(mine.begin(ask("And then?", key="k2")))
    with pytest.raises((asyncio.CancelledError, StoreUnavailable)):
        await task
    again = await mine.begin(ask("And then?", key="k2"))
    assert again.turn.attempt == (1 if when == "before_append" else 2)
    await end(mine, again)
    assert [(t.seq, t.status) for t in await log_of(strata)] == [(1, "failed"), (3, "done")]


@pytest.mark.parametrize("when", ["before_rerun", "after_rerun"])
@pytest.mark.parametrize("fault", ["cancelled", "store away"])
async def test_a_retry_that_breaks_off_can_be_retried(
    strata: Strata, when: str, fault: str
) -> None:
    await fail(strata.memory)
    store = Other(strata.store)
    mine = worker(strata, store)

    async def break_off() -> None:
        if fault == "store away":
            raise StoreUnavailable("away")
        task.cancel()
        await asyncio.sleep(0)

    store.acts[when] = break_off
    task = asyncio.create_task(mine.begin(ask()))
    with pytest.raises((asyncio.CancelledError, StoreUnavailable)):
        await task
    again = await mine.begin(ask())
    assert again.turn.attempt == (2 if when == "before_rerun" else 3)
    await end(mine, again)
    assert [(t.seq, t.status) for t in await log_of(strata)] == [(1, "done")]


async def test_a_turn_that_is_erased_while_it_begins_again_is_asked_anew(strata: Strata) -> None:
    await fail(strata.memory)
    store = Other(strata.store)
    for when in ("before_rerun", "after_rerun"):
        store.acts[when] = lambda: strata.store.sessions.delete(KEY)
        accepted = await worker(strata, store).begin(ask())
        assert (accepted.turn.seq, accepted.turn.attempt) == (1, 1)
        failed = msgspec.structs.replace(accepted.turn, status="failed")
        assert await strata.store.turns.save(failed)


# --- a retry, the next turn and a recording at the same moment ----------------------------------


async def test_a_retry_that_finds_a_later_turn_after_its_write_leaves_all_as_it_was(
    strata: Strata,
) -> None:
    first = await fail(strata.memory)
    store, next_one = Other(strata.store), worker(strata)
    taken: list[OpenTurn] = []

    async def act() -> None:
        taken.append(await next_one.begin(ask("never mind", key=None)))

    store.acts["before_rerun"] = act
    with pytest.raises(TurnSuperseded):
        await worker(strata, store).begin(ask())
    stored = await strata.store.turns.get(first.id, now=now())
    assert stored is not None
    assert msgspec.structs.replace(stored, fencing_token=first.fencing_token) == first
    await end(next_one, taken[0])
    assert [(t.seq, t.status) for t in await log_of(strata)] == [(1, "failed"), (3, "done")]


@pytest.mark.parametrize("what", ["turn", "message"])
async def test_who_comes_later_stops_a_retry_that_it_did_not_see(strata: Strata, what: str) -> None:
    """It has loaded the session before the retry's write, and inserts after the retry's look."""
    first = await fail(strata.memory)
    retrying, store = worker(strata), Other(strata.store)
    taken: list[OpenTurn] = []

    async def act() -> None:
        taken.append(await retrying.begin(ask()))

    store.acts["before_append"] = act
    later = worker(strata, store)
    if what == "turn":
        await say(later, "never mind")
    else:
        await later.record(USER, SESSION, [Incoming(role="user", content="never mind")])
    with pytest.raises(TurnLost):
        await taken[0].flush("late")
    taken[0].abandon()
    again, last = await log_of(strata)
    assert (again.id, again.attempt, again.status) == (first.id, 2, "interrupted")
    assert (last.seq, last.status) == (3, "done")
    with pytest.raises(TurnSuperseded):
        await retrying.begin(ask())


async def test_when_both_see_each_other_the_later_turn_stays(strata: Strata) -> None:
    await fail(strata.memory)
    retrys, laters = Other(strata.store), Other(strata.store)
    inserted, written, looked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def after_insert() -> None:
        inserted.set()
        await looked.wait()

    async def after_rerun() -> None:
        written.set()
        await inserted.wait()
        retrys.acts["after_load"] = after_look

    async def after_look() -> None:
        looked.set()

    laters.acts |= {"before_append": written.wait, "after_append": after_insert}
    retrys.acts["after_rerun"] = after_rerun
    later = asyncio.create_task(say(worker(strata, laters), "never mind"))
    with pytest.raises(TurnSuperseded):
        await worker(strata, retrys).begin(ask())
    assert (await later).seq == 3
    assert "running" not in {t.status for t in await log_of(strata)}
    assert (await say(strata.memory, "and now?")).seq == 5


async def test_a_retry_that_died_before_its_look_blocks_nobody(strata: Strata) -> None:
    """It runs, though it is not the newest, and nobody takes it over by being the next."""
    await fail(strata.memory)
    retrys, dead = Other(strata.store), worker(strata)

    async def act() -> None:
        await say(dead, "never mind")

    async def die() -> None:
        raise StoreUnavailable("away")

    retrys.acts |= {"before_rerun": act, "before_save": die}
    retrying = worker(strata, retrys)
    with pytest.raises(StoreUnavailable):
        await retrying.begin(ask())
    assert [t.status for t in await log_of(strata)] == ["running", "done"]
    assert (await say(retrying, "and now?")).seq == 5
    assert [t.status for t in await log_of(strata)] == ["interrupted", "done", "done"]


class Scheduler:
    """Lets the store calls of several workers through one at a time, in an order of its choice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._waiting: list[asyncio.Event] = []
        self._busy = False

    def store(self, inner: Store) -> Any:
        return _Scheduled(self, inner)

    async def turnstile(self) -> None:
        mine = asyncio.Event()
        self._waiting.append(mine)
        try:
            await mine.wait()
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            else:  # it had just been chosen
                self.passed()
            raise

    async def run(self, *actors: Coroutine[Any, Any, Any]) -> list[Any]:
        tasks = [asyncio.ensure_future(actor) for actor in actors]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.0005)
                if self._waiting and not self._busy:
                    self._busy = True
                    self._waiting.pop(self._rng.randrange(len(self._waiting))).set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def passed(self) -> None:
        self._busy = False


class _Scheduled(StoreAround):
    def __init__(self, scheduler: Scheduler, inner: Store) -> None:
        super().__init__(inner, embedded=False)
        self._scheduler = scheduler

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        await self._scheduler.turnstile()
        try:
            return await method(*given, **named)
        finally:
            self._scheduler.passed()


async def test_in_whatever_order_the_workers_write_the_log_is_whole(
    strata: Strata, rng: random.Random
) -> None:
    """R7 with R4: a turn that failed, two retries of it, a next turn and recorded messages, each
    in a worker of its own; every order of their store calls may come."""
    for _ in range(40):
        await strata.store.sessions.delete(KEY)
        await fail(strata.memory)
        scheduler = Scheduler(rng)
        prompts: dict[int, str] = {}

        async def turn_of(
            question: str,
            key: str | None,
            scheduler: Scheduler = scheduler,
            prompts: dict[int, str] = prompts,
        ) -> str:
            memory = worker(strata, scheduler.store(strata.store))
            try:
                accepted = await memory.begin(ask(question, key=key))
                context = await accepted.context()
                await accepted.flush("An answer")
                await accepted.finish(f"To {question}", status="done")
            except (Answered, TurnRunning, TurnSuperseded, TurnLost, SessionBusy) as told:
                return type(told).__name__
            prompts[accepted.turn.seq] = "\n".join(m.content for m in context.messages[1:])
            return "done"

        async def record(scheduler: Scheduler = scheduler) -> str:
            memory = worker(strata, scheduler.store(strata.store))
            told = [Incoming(role="user", content=f"told {n}") for n in range(2)]
            return str((await memory.record(USER, SESSION, told)).accepted)

        ends = await scheduler.run(
            turn_of("What is it?", "k"), turn_of("What is it?", "k"), turn_of("And then?", None),
            record(), turn_of("What else?", None),
        )  # fmt: skip
        turns = await log_of(strata)
        seqs = [m.seq for t in turns for m in t.messages]
        assert seqs == list(range(1, len(seqs) + 1)), (ends, seqs)
        assert {t.status for t in turns} <= {"done", "failed", "interrupted"}, ends
        assert ends[2:] == ["done", "2", "done"], ends
        assert set(ends[:2]) <= {"done", "Answered", "TurnRunning", "TurnSuperseded", "TurnLost"}
        assert ends[:2].count("done") <= 1
        assert (turns[0].status == "done") == ("done" in ends[:2])
        asked = [t.user.content for t in turns if t.user and t.assistant]
        assert sorted(asked) == ["And then?", "What else?", "What is it?"]
        for seq, prompt in prompts.items():
            for other in turns:
                if other.status == "done":
                    for message in other.messages:
                        if message.seq != seq + 1:
                            assert (message.content in prompt) == (message.seq <= seq), (ends, seq)
