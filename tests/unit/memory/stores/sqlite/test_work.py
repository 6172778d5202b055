"""What changes all sessions of the embedded store: how much of it is read, and what goes on beside
it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from memory.models import Session, Turn, new_session, session_key
from memory.stores.codec import Codec
from memory.stores.sqlite.sessions import PUT
from memory.stores.sqlite.store import SqliteStore
from memory.stores.sqlite.work import SESSIONS_AT_ONCE
from unit.builders import NOON, USER, turn

SIZES = (200, 2_000)


class Counting(Codec):
    """Counts what is decoded."""

    decoded = 0

    def unseal(self, value):  # type: ignore[no-untyped-def]
        self.decoded += 1
        return value


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "strata.db", codec=Counting())
    await made.open()
    yield made
    await made.close()


async def fill(store: SqliteStore, first: int, last: int) -> None:
    """Sessions of one turn each that every projection has seen."""
    codec = Codec()
    made = [_projected(n) for n in range(first, last)]
    assert await store.turns.append([turn for _, turn in made]) == len(made)

    def put(db: sqlite3.Connection) -> None:
        db.execute("UPDATE turns SET pending_since = NULL")
        db.executemany(PUT, (codec.session_row(session) for session, _ in made))

    await store._db.transaction(put)


def _projected(n: int) -> tuple[Session, Turn]:
    session = msgspec.structs.replace(
        new_session(USER.key, f"s{n}", NOON), last_seq=2, lexical_through=2, dense_through=2
    )
    return session, turn("q", "a", session=f"s{n}")


async def test_a_start_costs_the_same_however_many_sessions_there_are(store: SqliteStore) -> None:
    """It decoded every session: 5.5 s at 300,000 of them."""
    steps = []
    filled = 0
    codec = store.work._codec
    assert isinstance(codec, Counting)
    for size in SIZES:
        await fill(store, filled, size)
        filled, codec.decoded, counted = size, 0, [0]

        def count(counted: list[int] = counted) -> None:
            counted[0] += 1

        for connection in (store._db._writer, store._db._reader):
            assert connection is not None
            connection.set_progress_handler(count, 1)
        assert await store.turns.interrupt_running() == 0
        await store.work.finish_resets()
        await store.work.mark_dense_pending(reset=False)
        assert await store.work.pending() == []
        assert codec.decoded == 0
        steps.append(counted[0])
    assert 0 < steps[1] < 1.5 * steps[0], "steps of SQLite's machine"


async def test_what_lacks_dense_vectors_is_found_without_decoding_anything(
    store: SqliteStore,
) -> None:
    await fill(store, 0, 2 * SESSIONS_AT_ONCE + 1)
    behind = [session_key(USER.key, f"s{n}") for n in range(0, 2 * SESSIONS_AT_ONCE + 1, 100)]
    for key in behind:
        await store.sessions.change(key, {"dense_through": 0})
    codec = store.work._codec
    assert isinstance(codec, Counting)
    codec.decoded = 0
    await store.work.mark_dense_pending(reset=False)
    assert codec.decoded == 0
    assert set(await store.work.pending()) == set(behind)


@pytest.mark.parametrize("how", ["all", "dense"])
async def test_turns_are_written_while_all_sessions_are_set_back(
    store: SqliteStore, how: str
) -> None:
    await fill(store, 0, 6 * SESSIONS_AT_ONCE)
    work = (
        store.work.mark_all_pending() if how == "all" else store.work.mark_dense_pending(reset=True)
    )
    resetting = asyncio.create_task(work)
    written = 0
    while not resetting.done():
        await store.turns.append([turn("q", seq=1 + written, session="new")])
        written += 1
    await resetting
    assert written > 6, "one between any two batches"
    assert len(await store.work.pending(limit=99_999)) == 6 * SESSIONS_AT_ONCE + 1


async def test_a_reset_that_a_crash_cut_short_goes_on_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "strata.db"
    store = SqliteStore(path)
    await store.open()
    await fill(store, 0, 3)
    await store.close()
    keys = sorted(session_key(USER.key, f"s{n}") for n in range(3))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO resets VALUES ('dense', ?)", (keys[0],))
        db.execute("UPDATE sessions SET dense_through = 0 WHERE key = ?", (keys[0],))
    store = SqliteStore(path)
    await store.open()
    assert sorted(await store.work.pending()) == keys
    for key in keys:
        session = await store.sessions.get(key)
        assert session is not None
        assert (session.lexical_through, session.dense_through) == (2, 0)
    await store.work.mark_projected(keys[0], through=2)
    assert sorted(await store.work.pending()) == keys[1:], "the reset is over"
    await store.close()


async def test_what_was_projected_before_a_reset_counts_no_more(store: SqliteStore) -> None:
    """A projection that began with the old vectors commits while the reset runs."""
    await fill(store, 0, 2)
    key = session_key(USER.key, "s0")
    await store.work.mark_dense_pending(reset=True)
    await store._db.transaction(lambda db: db.execute("INSERT INTO resets VALUES ('dense', '')"))
    await store.sessions.change(key, {"lexical_through": 2, "dense_through": 2})
    await store.work.mark_projected(key, through=2)
    await store.work.finish_resets()
    session = await store.sessions.get(key)
    assert session is not None
    assert (session.lexical_through, session.dense_through) == (2, 0)
    assert key in await store.work.pending()
