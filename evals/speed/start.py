"""What a start costs over a large embedded store: `python -m evals start`.

The file holds that many projected sessions of one turn each. Measured from `open_memory` on: the
first accepted turn, the longest that any of the turns after it waited until the embedding model
was loaded and what lacked its vectors was looked for, and the one upgrade of such a file from
release 0.1.0.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec

from memory import MemoryConfig, Strata, TurnRequest, User, open_memory
from memory.log.transitions import Incoming, recorded_turn
from memory.models import Session, Turn, new_session, now, session_key
from memory.stores.codec import Codec
from memory.stores.sqlite.schema import prepare
from memory.stores.sqlite.sessions import PUT
from memory.stores.sqlite.store import SqliteStore
from memory.stores.sqlite.turns import INSERT
from memory.tokens import EstimatedCounter

SESSIONS_A_USER = 100
AT_ONCE = 5_000
BOUND_SECONDS = 0.5
YEAR_SECONDS = 365 * 86400.0
PAUSE_SECONDS = 0.02
SAID = Incoming(role="user", content="A second shop is a big step for Anna and for Biscuit.")


class StartFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, at so many sessions in the store."""

    sessions: int
    first_turn_seconds: float
    longest_turn_seconds: float
    model_seconds: float
    migration_seconds: float
    writes_seconds: float


async def run(*, sessions: int, tell: Callable[[str], None]) -> StartFigures:
    with tempfile.TemporaryDirectory(prefix="strata-start-") as name:
        folder = Path(name)
        config = MemoryConfig.model_validate(
            {
                "store": {"url": f"sqlite:///{folder}/strata.db"},
                "index": {"url": f"edge:///{folder}/index"},
            }
        )
        async with open_memory(config) as strata:  # an index without points is filled anew
            await strata.record(User("bench", "anna"), "first", [SAID])
            await strata.caught_up()
        tell(f"filling a store with {sessions:,} sessions")
        fill(folder / "strata.db", sessions)
        began = time.perf_counter()
        async with open_memory(config) as strata:
            await _take_turn(strata, 0)
            first = time.perf_counter() - began
            longest = 0.0
            turns = 1
            while turns == 1 or not strata.embeddings_loaded.is_set():
                asked = time.perf_counter()
                await _take_turn(strata, turns)
                longest, turns = max(longest, time.perf_counter() - asked), turns + 1
                await asyncio.sleep(PAUSE_SECONDS)
            model = time.perf_counter() - began
        tell("writing turns while all of them become pending")
        writes = await _longest_write(folder / "strata.db")
        tell("the same file as release 0.1.0 wrote it")
        as_release_0_1_0(folder / "strata.db")
        began = time.perf_counter()
        store = SqliteStore(folder / "strata.db")
        await store.open()
        migration = time.perf_counter() - began
        await store.close()
        return StartFigures(
            sessions=sessions,
            first_turn_seconds=round(first, 3),
            longest_turn_seconds=round(longest, 3),
            model_seconds=round(model, 2),
            migration_seconds=round(migration, 2),
            writes_seconds=round(writes, 3),
        )


def fill(path: Path, sessions: int) -> None:
    """Make the store at `path` with this many sessions, which every projection has seen."""
    codec = Codec()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        prepare(db)
        db.execute("PRAGMA synchronous = OFF")
        for start in range(0, sessions, AT_ONCE):
            made = list(_sessions(range(start, min(start + AT_ONCE, sessions))))
            db.execute("BEGIN")
            db.executemany(INSERT, ((*codec.turn_row(turn), None) for _, turn in made))
            db.executemany(PUT, (codec.session_row(session) for session, _ in made))
            db.execute("COMMIT")


def as_release_0_1_0(path: Path) -> None:
    """Take from the file what later releases have added to its tables."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP INDEX sessions_without_dense")
        db.execute("DROP TABLE resets")
        db.execute("ALTER TABLE turns DROP COLUMN attempt")
        for name in ("last_seq", "lexical_through", "dense_through"):
            db.execute(f"ALTER TABLE sessions DROP COLUMN {name}")
        db.execute("PRAGMA user_version = 0")


def _sessions(numbers: range) -> Iterator[tuple[Session, Turn]]:
    counter, moment = EstimatedCounter(), now()
    for n in numbers:
        user, name = User("bench", f"user{n // SESSIONS_A_USER}"), f"s{n}"
        at = moment - timedelta(seconds=n % 86400)
        turn = recorded_turn(user, name, 1, SAID, ttl=YEAR_SECONDS, counter=counter)
        document = new_session(user.key, name, at)
        yield (
            msgspec.structs.replace(
                document, title="A second shop", last_seq=1, lexical_through=1, dense_through=1
            ),
            msgspec.structs.replace(turn, created_at=at, session_key=session_key(user.key, name)),
        )


async def _take_turn(strata: Strata, n: int) -> None:
    request = TurnRequest(
        user=User("bench", "anna"), session_id=f"new{n}", question="Which shop?", recall="none"
    )
    (await strata.memory.begin(request)).abandon()


async def _longest_write(path: Path) -> float:
    """How long a session document's change waits at most while every turn is made pending."""
    store = SqliteStore(path)
    await store.open()
    try:
        key = session_key(User("bench", "user0").key, "s0")
        resetting = asyncio.create_task(store.work.mark_all_pending())
        longest = 0.0
        while not resetting.done():
            asked = time.perf_counter()
            await store.sessions.change(key, {"title": "A shop"})
            longest = max(longest, time.perf_counter() - asked)
        await resetting
    finally:
        await store.close()
    return longest


def table(figures: StartFigures) -> str:
    """The figures as Markdown."""
    return (
        f"| {figures.sessions:,} sessions in SQLite | bound | seconds |\n|---|---|---|\n"
        f"| `open_memory` to the first accepted turn | {BOUND_SECONDS} "
        f"| {figures.first_turn_seconds} |\n"
        f"| longest wait of a turn until the model was loaded | {BOUND_SECONDS} "
        f"| {figures.longest_turn_seconds} |\n"
        f"| until the model was loaded | | {figures.model_seconds} |\n"
        f"| longest wait of a write while all turns become pending | "
        f"| {figures.writes_seconds} |\n"
        f"| upgrade of a file of release 0.1.0, once | | {figures.migration_seconds} |\n"
    )
