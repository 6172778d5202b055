"""How turns, sessions and segments become what a store keeps, and come back: the one seam of both
stores.

SQLite keeps a value as JSON, beside columns for what is searched, compared or changed alone.
MongoDB keeps it as a document with BSON dates (milliseconds, as all times here); dicts whose keys
a caller chose are JSON text there, since a server may refuse or misread keys with `$` and `.`.

An encrypted store is one of these stores with a codec whose `seal` and `unseal` encrypt and decrypt
what people said: every value passes through them on its way to the store and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from memory.ids import SessionKey, TurnId, UserKey
from memory.models import NEVER, Segment, Session, Turn
from memory.receipt import Receipt

Value = TypeVar("Value", Turn, Session, Segment)
Document = dict[str, Any]

_JSON_TEXT = ("metadata", "usage")
# What an insert decides once and for all.
_FIXED = ("id", "user_key", "session_key", "session_id", "seq", "last_seq", "idempotency")

_turn = msgspec.json.Decoder(Turn).decode
_session = msgspec.json.Decoder(Session).decode
_segment = msgspec.json.Decoder(Segment).decode
_receipt = msgspec.json.Decoder(Receipt).decode


class TurnRow(NamedTuple):
    """The columns of a turn; times are seconds since 1970. `body` has everything but `receipt`."""

    id: TurnId
    user_key: UserKey
    session_key: SessionKey
    seq: int
    last_seq: int
    idempotency: str
    status: str
    token: str
    attempt: int
    created_at: float
    expires_at: float
    body: bytes
    receipt: bytes | None


class SessionRow(NamedTuple):
    """The columns of a session. The two watermarks count, not those in `body`."""

    key: SessionKey
    user_key: UserKey
    updated_at: float
    expires_at: float
    erasing: bool
    last_seq: int
    lexical_through: int
    dense_through: int
    body: bytes


class SegmentRow(NamedTuple):
    session_key: SessionKey
    first_seq: int
    expires_at: float
    body: bytes


class Codec:
    """Values as they are: nothing is encrypted."""

    def seal(self, value: Value) -> Value:
        """The value as it may be stored: with the same ids, numbers, times and statuses."""
        return value

    def unseal(self, value: Value) -> Value:
        """What `seal` was given."""
        return value

    # --- SQLite ------------------------------------------------------------------------------

    def turn_row(self, turn: Turn) -> TurnRow:
        turn = self.seal(turn)
        return TurnRow(
            turn.id, turn.user_key, turn.session_key, turn.seq, turn.last_seq, turn.idempotency,
            turn.status, turn.fencing_token, turn.attempt,
            turn.created_at.timestamp(), turn.expires_at.timestamp(),
            msgspec.json.encode(msgspec.structs.replace(turn, receipt=None)),
            msgspec.json.encode(turn.receipt) if turn.receipt else None,
        )  # fmt: skip

    def turn_from_row(self, body: bytes, receipt: bytes | None = None) -> Turn:
        turn = _turn(body)
        if receipt:
            turn = msgspec.structs.replace(turn, receipt=_receipt(receipt))
        return self.unseal(turn)

    def session_row(self, session: Session) -> SessionRow:
        session = self.seal(session)
        return SessionRow(
            session.key, session.user_key,
            session.updated_at.timestamp(), session.expires_at.timestamp(), session.erasing,
            session.last_seq, session.lexical_through, session.dense_through,
            msgspec.json.encode(session),
        )  # fmt: skip

    def session_from_row(self, body: bytes, lexical_through: int, dense_through: int) -> Session:
        watermarks = {"lexical_through": lexical_through, "dense_through": dense_through}
        return self.unseal(msgspec.structs.replace(_session(body), **watermarks))

    def segment_row(self, segment: Segment) -> SegmentRow:
        body, expires_at = msgspec.json.encode(self.seal(segment)), segment.expires_at.timestamp()
        return SegmentRow(segment.session_key, segment.first_seq, expires_at, body)

    def segment_from_row(self, body: bytes) -> Segment:
        return self.unseal(_segment(body))

    # --- MongoDB -----------------------------------------------------------------------------

    def turn_document(self, turn: Turn) -> Document:
        return _with_id(_fields(self.seal(turn)), "id")

    def turn_fields(self, turn: Turn) -> Document:
        """What an update of the turn sets: all that can change after its insert."""
        made = _fields(self.seal(turn))
        return {name: value for name, value in made.items() if name not in _FIXED}

    def turn_from_document(self, document: Document) -> Turn:
        return self.unseal(msgspec.convert(_without_id(document, "id"), Turn))

    def session_document(self, session: Session) -> Document:
        document = _fields(self.seal(session))
        if not session.erasing:
            del document["erasing"]  # its index holds only sessions that are being erased
        return _with_id(document, "key")

    def session_update(self, key: SessionKey, changes: Mapping[str, Any]) -> Document:
        """The update that sets these fields of the session, each as a whole."""
        none_yet = Session(
            key=key, user_key=owner(key), session_id="", title="", created_at=NEVER,
            updated_at=NEVER,
        )  # fmt: skip
        sealed = self.seal(msgspec.structs.replace(none_yet, **changes))
        changed = _fields({name: getattr(sealed, name) for name in changes})
        if changed.get("erasing", True):
            return {"$set": changed}
        del changed["erasing"]
        return {"$set": changed, "$unset": {"erasing": ""}}

    def session_from_document(self, document: Document) -> Session:
        return self.unseal(msgspec.convert(_without_id(document, "key"), Session))

    def segment_document(self, segment: Segment) -> Document:
        return {
            "_id": f"{segment.session_key}:{segment.first_seq}",
            "user_key": owner(segment.session_key),
            **_fields(self.seal(segment)),
        }

    def segment_from_document(self, document: Document) -> Segment:
        return self.unseal(msgspec.convert(document, Segment))


def owner(id_: str) -> UserKey:
    """The user key, with which the key of a session and the id of a turn begin."""
    return UserKey(id_.partition(".")[0])


def _fields(value: Any) -> Document:
    """The stored names and values of a value's fields."""
    made: Document = msgspec.to_builtins(value, builtin_types=(datetime,))
    for name in _JSON_TEXT:
        if made.get(name) is not None:
            made[name] = msgspec.json.encode(made[name]).decode()
    return made


def _with_id(document: Document, name: str) -> Document:
    return {"_id": document.pop(name), **document}


def _without_id(document: Document, name: str) -> Document:
    document[name] = document.pop("_id")
    for text in _JSON_TEXT:
        if document.get(text) is not None:
            document[text] = msgspec.json.decode(document[text])
    return document
