"""Files of other releases: `release_0_1_0.sql` is the dump of a file that release 0.1.0 wrote.

It holds finished turns, a turn that failed, one that failed and ran again, one of these that is
pending, a turn that was running when the process died, a session with a summary and its segments,
one whose second turn lacks dense vectors, and a poisoned message.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory.errors import ConfigError
from memory.models import User, now, session_key
from memory.stores.sqlite.schema import VERSION, prepare
from memory.stores.sqlite.store import SqliteStore
from unit.builders import USER, LateModel, assembled, turn

DUMP = Path(__file__).with_name("release_0_1_0.sql")
ZOE = User("acme", "Zoë")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The file as release 0.1.0 left it."""
    path = tmp_path / "strata.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(DUMP.read_text())
    return path


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    yield store
    await store.close()


def stored(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def version(path: Path) -> int:
    [(found,)] = stored(path, "PRAGMA user_version")
    return int(found)


async def test_everything_of_release_0_1_0_is_read(old: Path) -> None:
    bodies = {
        id_: (json.loads(body), receipt and json.loads(receipt))
        for id_, body, receipt in stored(old, "SELECT id, body, receipt FROM turns")
    }
    sessions = [json.loads(body) for (body,) in stored(old, "SELECT body FROM sessions")]
    segments = [json.loads(body) for (body,) in stored(old, "SELECT body FROM segments")]
    pending = stored(old, "SELECT DISTINCT session_key FROM turns WHERE pending_since NOT NULL")
    assert (len(bodies), len(sessions), len(segments), len(pending)) == (17, 5, 3, 4)
    async with opened(old) as store:
        assert version(old) == VERSION
        for id_, (body, receipt) in bodies.items():
            found = await store.turns.get(id_, now=now())
            assert json.loads(msgspec.json.encode(found)) == {**body, "receipt": receipt}
            assert found is not None
            ranged = await store.turns.range(found.session_key, after=found.seq - 1, limit=1)
            assert ranged == [msgspec.structs.replace(found, receipt=None)]
        for body in sessions:
            session = await store.sessions.get(body["key"])
            assert json.loads(msgspec.json.encode(session)) == body
        long = session_key(USER.key, "long")
        kept = await store.segments.of(long, now=now())
        assert [json.loads(msgspec.json.encode(one)) for one in kept] == segments
        assert {(key,) for key in await store.work.pending()} == set(pending)
        again = await store.work.pending_reruns(session_key(USER.key, "again"), through=9, limit=9)
        assert [(t.attempt, t.assistant and t.assistant.content) for t in again] == [(2, "Cloudy.")]
        [poisoned] = await store.work.poisoned()
        assert poisoned.message_id == f"{session_key(USER.key, 'dog')}:0000000003.u"
        keys = [body["idempotency"] for body, _ in bodies.values() if body["body_hash"] == "d"]
        assert list(await store.turns.by_idempotency(USER.key, [*keys, "no"])) == keys != []
        assert await store.turns.interrupt_running() == 1


@pytest.mark.parametrize("index", ["fresh", "kept"])
async def test_the_projections_of_release_0_1_0_catch_up(old: Path, index: str) -> None:
    """With a new index all is projected; with the old one what was pending or without vectors."""
    folder, model = old.parent, LateModel()
    model.release.set()
    if index == "kept":  # it holds something, and knows the model
        aside = old.rename(folder / "aside.db")
        async with assembled(folder, model=model) as strata:
            await strata.store.turns.append([turn("Ich wohne in München.", user=ZOE)])
            await strata.caught_up()
        for path in folder.glob("strata.db*"):
            path.unlink()
        aside.rename(old)
        model = LateModel()
        model.release.set()
    async with assembled(folder, model=model) as strata:
        await strata.store.turns.interrupt_running()
        await strata.embeddings_loaded.wait()
        keys = {session_key(USER.key, name) for name in ("again", "pending", "failed")}
        keys |= {session_key(USER.key, name) for name in ("left running", "half dense")}
        if index == "fresh":
            keys |= {session_key(USER.key, name) for name in ("dog", "long")}
            keys |= {session_key(ZOE.key, "städte")}
        assert set(await strata.store.work.pending()) == keys
        assert len(await strata.store.work.poisoned()) == (index == "kept")
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        for key in keys:
            session = await strata.store.sessions.get(key)
            assert session is not None
            assert session.lexical_through == session.dense_through == session.last_seq > 0


async def test_an_upgrade_that_is_cut_short_leaves_the_file_as_it_was(old: Path) -> None:
    tables = stored(old, "SELECT sql FROM sqlite_master ORDER BY sql")
    turns = stored(old, "SELECT * FROM turns")
    cuts, done = 0, False
    while not done:
        with closing(sqlite3.connect(old, isolation_level=None)) as db:
            left = iter(range(cuts))
            db.set_progress_handler(lambda left=left: next(left, None) is None, 50)
            with suppress(sqlite3.OperationalError):  # "interrupted"
                prepare(db)
                done = True
        if not done:
            assert version(old) == 0
            assert stored(old, "SELECT sql FROM sqlite_master ORDER BY sql") == tables
            assert stored(old, "SELECT * FROM turns") == turns
        cuts += 1
    assert cuts > 10
    assert version(old) == VERSION


async def test_a_file_of_a_later_release_is_refused_and_left_alone(old: Path) -> None:
    async with opened(old):
        pass
    with closing(sqlite3.connect(old)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    store = SqliteStore(old)
    with pytest.raises(ConfigError, match=f"version {VERSION + 1}.*start the release") as refused:
        await store.open()
    assert "store.url" in str(refused.value)
    assert version(old) == VERSION + 1
    with closing(sqlite3.connect(old)) as db:
        db.execute(f"PRAGMA user_version = {VERSION}")
    async with opened(old):
        pass  # the folder was not left locked


async def test_a_probe_of_the_disk_does_not_change_the_version(tmp_path: Path) -> None:
    path = tmp_path / "strata.db"
    async with opened(path) as store:
        assert version(path) == VERSION
        store._db._write_failed = True
        await store.ping()
        assert not store._db._write_failed, "it has written"
        assert version(path) == VERSION


async def test_a_probe_by_release_0_1_0_does_no_harm(old: Path) -> None:
    """After a failed write it set the version to 1, in a file of any release."""
    with closing(sqlite3.connect(old)) as db:
        db.execute("PRAGMA user_version = 1")
    key = session_key(USER.key, "dog")
    async with opened(old) as store:
        await store.work.mark_dense_pending(reset=True)
    with closing(sqlite3.connect(old)) as db:
        db.execute("PRAGMA user_version = 1")
    async with opened(old) as store:
        session = await store.sessions.get(key)
        assert session is not None
        assert (session.last_seq, session.lexical_through, session.dense_through) == (4, 4, 0)
    assert version(old) == VERSION
