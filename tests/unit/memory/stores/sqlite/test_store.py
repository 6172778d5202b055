from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import msgspec
import pytest
from contract.sealed import Sealed
from waiting import PATIENCE_SECONDS

from memory import Strata, TurnRequest
from memory.errors import StoreUnavailable
from memory.models import NEVER, Segment, Summary, new_session, session_key
from memory.stores.sqlite.database import Database
from memory.stores.sqlite.store import SqliteStore
from unit.builders import NOON, SESSION, USER, dialogue, embedded_bytes, turn

KEY = session_key(USER.key, SESSION)


async def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    first, second = (SqliteStore(tmp_path / "strata.db") for _ in range(2))
    await first.open()
    with pytest.raises(StoreUnavailable, match="in use by another process"):
        await second.open()
    await first.close()
    third = SqliteStore(tmp_path / "strata.db")
    await third.open()
    await third.close()


async def test_every_commit_is_synced_and_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "strata.db")
    await store.open()
    assert store._db._writer is not None
    pragmas = {
        name: store._db._writer.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "secure_delete")
    }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}
    await store.close()


async def test_deleted_text_is_in_no_file_even_while_the_store_is_open(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "strata.db")
    await store.open()
    big = "Xylophon " * 3000
    await store.turns.append([*dialogue([("The Canary", "sings")] * 50), turn(big, "yes", seq=101)])
    await store.turns.append([turn("Bruno", session="other")])
    assert b"Canary" in embedded_bytes(tmp_path)
    assert await store.sessions.delete(KEY) == 51
    raw = embedded_bytes(tmp_path)
    assert b"Canary" not in raw
    assert b"Xylophon" not in raw
    assert b"Bruno" in raw
    await store.close()


async def test_with_a_codec_that_seals_no_file_holds_what_was_said(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "strata.db", codec=Sealed())
    await store.open()
    await store.turns.append([turn("The Canary", "sings", speaker="Canary")])
    session = msgspec.structs.replace(new_session(USER.key, SESSION, NOON), title="The Canary")
    await store.sessions.put(session)
    summary = Summary(text="The Canary sang.", version=1)
    await store.sessions.change(KEY, {"summary": summary, "metadata": {"bird": "Canary"}})
    segment = Segment(session_key=KEY, first_seq=1, last_seq=2, text="Canary", expires_at=NEVER)
    await store.segments.put(segment)
    assert await store.segments.of(KEY, now=NOON) == [segment]
    assert b"Canary" not in embedded_bytes(tmp_path)
    await store.close()


async def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data" / "strata.db")
    await store.open()
    await store.turns.append([turn("private")])
    for path in (tmp_path / "data", *(tmp_path / "data").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path.name
    await store.close()


async def test_a_cancelled_write_is_still_waited_for_by_those_after_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "strata.db")
    await store.open()
    writing = asyncio.create_task(store.turns.append([turn("first")]))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert await store.turns.append([turn("second", seq=2)]) == 1
    assert [t.seq for t in await store.turns.range(KEY, after=0, limit=9)] == [1, 2]
    await store.close()


def one_table(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t (a)")


async def test_a_checkpoint_is_over_before_the_next_write(tmp_path: Path) -> None:
    """R1: erases that follow one another, and turns of others between."""
    database = Database(tmp_path / "strata.db", prepare=one_table, timeout_seconds=5)
    await database.open()

    async def write() -> None:
        await database.transaction(lambda db: db.execute("INSERT INTO t VALUES (1)").rowcount)

    for _ in range(10):
        await asyncio.gather(
            *(work for _ in range(5) for work in (write(), database.checkpoint(), write(),
                                                  database.checkpoint()))
        )  # fmt: skip
    assert await database.column("SELECT count(*) FROM t") == [100]
    await database.close()


async def test_no_query_walks_through_what_is_not_its_own(strata: Strata) -> None:
    """With a million turns of others a turn costs what it costs with none."""
    db = strata.store._db  # type: ignore[attr-defined]
    statements: set[str] = set()
    for connection in (db._reader, db._writer):
        connection.set_trace_callback(statements.add)
    for session, question in (("a", "My dog is called Bruno."), ("b", "What is my dog called?")):
        accepted = await strata.memory.begin(
            TurnRequest(user=USER, session_id=session, question=question, idempotency_key=session)
        )
        await accepted.context()
        await accepted.flush("Bru")
        await accepted.finish("Bruno.", status="done")
        await strata.caught_up()
    await strata.projector.state()
    await strata.sweeper.sweep()
    await strata.history.sessions(USER, before=None, limit=9)
    await strata.history.messages(USER, "a", before=None, limit=9)
    await strata.history.delete_session(USER, "a")
    for connection in (db._reader, db._writer):
        connection.set_trace_callback(None)
    plain = [s for s in statements if s.startswith(("SELECT", "UPDATE", "DELETE"))]
    assert len(plain) > 20
    plans = {
        statement: [row[3] for row in db._reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in plain
    }
    scans = {
        statement: plan
        for statement, plan in plans.items()
        if any(step.startswith(("SCAN turns", "SCAN sessions", "SCAN segments")) for step in plan)
    }
    assert not scans


async def test_a_damaged_file_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "strata.db").write_bytes(b"this is not a database" * 100)
    store = SqliteStore(tmp_path / "strata.db")
    with pytest.raises(StoreUnavailable):
        await store.open()


async def test_a_locked_file_is_an_unavailable_store_in_time(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "strata.db", timeout_seconds=0.2)
    await store.open()
    other = sqlite3.connect(tmp_path / "strata.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.turns.append([turn("x")])
    other.execute("ROLLBACK")
    other.close()
    assert await store.turns.append([turn("x")]) == 1
    await store.close()
    assert os.path.exists(tmp_path / "lock")


async def test_a_file_of_an_earlier_version_opens_and_gets_what_it_lacks(tmp_path: Path) -> None:
    path, (message,) = tmp_path / "strata.db", turn("q").messages
    for old in (True, False):
        store = SqliteStore(path)
        await store.open()
        if old:
            await store.turns.append([turn("q")])
        assert await store.work.mark_poisoned(
            message.id, reason="embedding", now=message.created_at
        )
        await store.close()
        if old:
            with sqlite3.connect(path) as db:
                db.execute("DROP TRIGGER turns_gone")
                db.execute("DROP TABLE aside")
            db.close()
