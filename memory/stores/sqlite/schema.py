"""The tables of the embedded store, and the steps that bring a file of an earlier release to them.

`PRAGMA user_version` says which tables a file has: 0 or 1 are those of release 0.1.0 (or none yet).
"""

from __future__ import annotations

import sqlite3
import time

import structlog

from memory.errors import ConfigError
from memory.stores.sqlite.database import transaction

log = structlog.get_logger("strata")

VERSION = 2
# `turns` has row ids: without them its large documents stand in the inner nodes of the tree, and
# reading one costs three times as much.
# `resets` holds how far a change of all sessions has come (see work.py).
SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, user_key TEXT NOT NULL, session_key TEXT NOT NULL,
    seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, idempotency TEXT NOT NULL,
    status TEXT NOT NULL, token TEXT NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, pending_since REAL, body BLOB NOT NULL, receipt BLOB,
    attempt INTEGER NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX IF NOT EXISTS turns_session ON turns (session_key, seq);
CREATE UNIQUE INDEX IF NOT EXISTS turns_idempotency ON turns (user_key, idempotency);
CREATE INDEX IF NOT EXISTS turns_user ON turns (user_key, created_at, id);
CREATE INDEX IF NOT EXISTS turns_pending ON turns (pending_since, session_key, user_key)
    WHERE pending_since IS NOT NULL;
CREATE INDEX IF NOT EXISTS turns_expiry ON turns (expires_at);
CREATE INDEX IF NOT EXISTS turns_running ON turns (status) WHERE status = 'running';
CREATE TABLE IF NOT EXISTS aside (
    turn_id TEXT NOT NULL, message_id TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (turn_id, message_id)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS turns_gone AFTER DELETE ON turns
    BEGIN DELETE FROM aside WHERE turn_id = OLD.id; END;
CREATE TABLE IF NOT EXISTS sessions (
    key TEXT PRIMARY KEY, user_key TEXT NOT NULL, updated_at REAL NOT NULL,
    expires_at REAL NOT NULL, erasing INTEGER NOT NULL, body BLOB NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0, lexical_through INTEGER NOT NULL DEFAULT 0,
    dense_through INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_user ON sessions (user_key, updated_at, key);
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_at);
CREATE INDEX IF NOT EXISTS sessions_erasing ON sessions (erasing) WHERE erasing = 1;
CREATE INDEX IF NOT EXISTS sessions_without_dense ON sessions (key, dense_through)
    WHERE dense_through < last_seq;
CREATE TABLE IF NOT EXISTS segments (
    session_key TEXT NOT NULL, first_seq INTEGER NOT NULL, expires_at REAL NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (session_key, first_seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS resets (
    kind TEXT PRIMARY KEY, session_key TEXT NOT NULL
) WITHOUT ROWID;
"""


def prepare(db: sqlite3.Connection) -> None:
    """Make what is missing, in one transaction: a crash leaves the file as it was.

    Raises ConfigError for a file that a later release has written.
    """
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise ConfigError(
            "store.url",
            f"the file has tables of version {found}, this release knows them up to {VERSION}",
            "start the release that wrote it, or a later one",
        )
    began = time.monotonic()
    with transaction(db):
        migrated = found < 2 and _has_columns(db, "turns") and _columns_of_version_2(db)
        for statement in SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
    if migrated:
        seconds = round(time.monotonic() - began, 2)
        log.info("store.migrated", version=VERSION, before=found, seconds=seconds)


def _columns_of_version_2(db: sqlite3.Connection) -> bool:
    """What stood in the JSON of turns and sessions alone becomes columns."""
    if not _has_columns(db, "turns", "attempt"):
        db.execute("ALTER TABLE turns ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1")
    attempt = _json("attempt")
    db.execute(f"UPDATE turns SET attempt = {attempt} WHERE {attempt} > 1")
    # Once they are columns they count, and not the JSON.
    if not _has_columns(db, "sessions", "dense_through"):
        names = ("last_seq", "lexical_through", "dense_through")
        for name in names:
            db.execute(f"ALTER TABLE sessions ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
        db.execute(f"UPDATE sessions SET {', '.join(f'{n} = {_json(n)}' for n in names)}")
    return True


def _has_columns(db: sqlite3.Connection, table: str, *names: str) -> bool:
    """Whether there is such a table, with these columns."""
    there = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
    return bool(there) and there >= set(names)


def _json(name: str) -> str:
    # A cast, since newer releases of SQLite take a blob for their binary form of JSON.
    return f"json_extract(CAST(body AS TEXT), '$.{name}')"
