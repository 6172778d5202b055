"""The tables of the embedded store, and how its documents become rows and come back."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from memory.models import Segment, Session, Turn
from memory.receipt import Receipt

# `turns` has row ids: without them its large documents stand in the inner nodes of the tree, and
# reading one costs three times as much.
SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, user_key TEXT NOT NULL, session_key TEXT NOT NULL,
    seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, idempotency TEXT NOT NULL,
    status TEXT NOT NULL, token TEXT NOT NULL, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, pending_since REAL, body BLOB NOT NULL, receipt BLOB
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
    expires_at REAL NOT NULL, erasing INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_user ON sessions (user_key, updated_at, key);
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_at);
CREATE INDEX IF NOT EXISTS sessions_erasing ON sessions (erasing) WHERE erasing = 1;
CREATE TABLE IF NOT EXISTS segments (
    session_key TEXT NOT NULL, first_seq INTEGER NOT NULL, expires_at REAL NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (session_key, first_seq)
) WITHOUT ROWID;
"""

decode_turn = msgspec.json.Decoder(Turn).decode
decode_session = msgspec.json.Decoder(Session).decode
decode_segment = msgspec.json.Decoder(Segment).decode
decode_receipt = msgspec.json.Decoder(Receipt).decode


def columns(turn: Turn) -> tuple[Any, ...]:
    receipt = msgspec.json.encode(turn.receipt) if turn.receipt else None
    return (
        turn.id,
        turn.user_key,
        turn.session_key,
        turn.seq,
        turn.last_seq,
        turn.idempotency,
        turn.status,
        turn.fencing_token,
        turn.created_at.timestamp(),
        turn.expires_at.timestamp(),
        msgspec.json.encode(msgspec.structs.replace(turn, receipt=None)),
        receipt,
    )


def put_session(db: sqlite3.Connection, session: Session) -> None:
    db.execute(
        "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
        (
            session.key,
            session.user_key,
            session.updated_at.timestamp(),
            session.expires_at.timestamp(),
            session.erasing,
            msgspec.json.encode(session),
        ),
    )


def marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
