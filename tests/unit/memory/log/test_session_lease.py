"""R1, R3 where several processes write: a turn is inserted beside the read of what it follows."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from memory import Strata
from memory.errors import StoreUnavailable
from memory.models import new_session, now
from unit.builders import SESSION, USER, expired, opened
from unit.memory.log.test_idempotency import KEY, Other, ask, end, fail, log_of, say, worker


class Counting(Other):
    """Also counts the calls, and tells how many were under way at once."""

    def __init__(self, inner: object) -> None:
        super().__init__(inner)  # type: ignore[arg-type]
        self.calls: list[str] = []
        self.most_at_once = self._now = 0

    async def _act(self, when: str) -> None:
        kind, _, name = when.partition("_")
        if kind == "before":
            self.calls.append(name)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            await asyncio.sleep(0)
        else:
            self._now -= 1
        await super()._act(when)


async def first_seq(strata: Strata) -> int:
    session = await strata.store.sessions.get(KEY)
    assert session is not None
    return session.first_seq


async def test_the_next_turn_of_a_session_is_inserted_while_the_session_is_read(
    strata: Strata,
) -> None:
    store = Counting(strata.store)
    memory = worker(strata, store)
    await say(memory, "one")
    store.calls.clear()
    store.most_at_once = 0
    accepted = await memory.begin(ask("two", key="k"))
    assert sorted(store.calls) == ["append", "load"]
    assert store.most_at_once == 2
    context = await accepted.context()
    assert [m.content for m in context.messages[1:]] == ["one", "An answer.", "two"]
    await end(memory, accepted)
    assert [t.seq for t in await log_of(strata)] == [1, 3]


async def test_what_another_worker_has_added_meanwhile_stands_before_it(strata: Strata) -> None:
    here, there = worker(strata), worker(strata)
    await say(here, "one")
    await say(there, "two")
    accepted = await here.begin(ask("three", key=None))
    context = await accepted.context()
    assert [m.content for m in context.messages[1:]] == [
        "one", "An answer.", "two", "An answer.", "three"
    ]  # fmt: skip
    await end(here, accepted)
    assert [t.user.content for t in await log_of(strata) if t.user] == ["one", "two", "three"]


async def test_a_session_that_was_erased_and_begun_anew_elsewhere_is_gone_on_with(
    strata: Strata,
) -> None:
    here, there = worker(strata), worker(strata)
    for question in ("one", "two"):
        await say(here, question)
    await strata.store.sessions.delete(KEY)
    await say(there, "another one")
    accepted = await here.begin(ask("three", key=None))
    assert accepted.turn.seq == 3
    assert [m.content for m in (await accepted.context()).messages[1:]] == [
        "another one", "An answer.", "three"
    ]  # fmt: skip
    await end(here, accepted)
    assert [t.seq for t in await log_of(strata)] == [1, 3], "what was inserted ahead is gone"


async def test_in_a_session_that_is_being_erased_nothing_is_left_ahead(strata: Strata) -> None:
    memory = worker(strata)
    await say(memory, "one")
    await strata.store.sessions.put(new_session(USER.key, SESSION, now()))
    await strata.store.sessions.change(KEY, {"erasing": True, "first_seq": 3, "last_seq": 2})
    accepted = await memory.begin(ask("two", key=None))
    assert accepted.turn.seq == await first_seq(strata) == 3
    assert (await accepted.context()).receipt.layers.window.messages == 0
    accepted.abandon()


async def test_a_session_that_has_ended_begins_anew(tmp_path: Path) -> None:
    ttl = {"session": "300ms"}
    async with opened(tmp_path, ttl=ttl) as strata:
        memory = worker(strata, ttl=ttl)
        first = await say(memory, "one")
        await strata.caught_up()
        await expired(first.recorded_at + timedelta(milliseconds=300))
        accepted = await memory.begin(ask("two", key=None))
        assert accepted.turn.seq == await first_seq(strata) == 3
        accepted.abandon()


async def test_a_turn_that_failed_may_run_again_and_is_not_overtaken(strata: Strata) -> None:
    store = Counting(strata.store)
    memory = worker(strata, store)
    await fail(memory)
    store.calls.clear()
    store.most_at_once = 0
    await end(memory, await memory.begin(ask("two", key=None)))
    assert store.calls.index("load") < store.calls.index("append")
    assert store.most_at_once == 1


@pytest.mark.parametrize("name", ["load", "append"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_store_that_fails_meanwhile_leaves_the_session_free(
    strata: Strata, name: str, when: str
) -> None:
    store = Other(strata.store)
    memory = worker(strata, store)
    await say(memory, "one")

    async def away() -> None:
        raise StoreUnavailable("away")

    store.acts = {f"{when}_{name}": away}
    with pytest.raises(StoreUnavailable):
        await memory.begin(ask("two", key=None))
    await end(memory, await memory.begin(ask("three", key=None)))
    said = [t.user.content for t in await log_of(strata) if t.user]
    assert said in (["one", "three"], ["one", "two", "three"])
    assert "running" not in {t.status for t in await log_of(strata)}
