"""Pure: when a turn and a session end, and what a session is that begins anew."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import msgspec

from memory.ids import UserKey
from memory.models import NEVER, Session, Summary, Turn, session_key

TITLE_CHARACTERS = 60


def expiry_of(moment: datetime, ttl: float | str) -> datetime:
    """`moment` + `ttl` seconds; NEVER for "session" and for what lies beyond the calendar."""
    if isinstance(ttl, str) or math.isinf(ttl):
        return NEVER
    try:
        return min(NEVER, moment + timedelta(seconds=ttl))
    except OverflowError:
        return NEVER


def session_expiry(session: Session, last_activity: datetime, default_ttl: float) -> datetime:
    ttl = default_ttl if session.ttl_seconds is None else session.ttl_seconds
    return expiry_of(last_activity, ttl)


def ended(session: Session, newest: Turn | None, at: datetime, default_ttl: float) -> bool:
    """Whether the session's time after its last activity is over, or it is being erased and
    nothing has been said in it since."""
    last_seq = session.last_seq if newest is None else max(session.last_seq, newest.last_seq)
    if session.erasing and last_seq < session.first_seq:
        return True
    activity = session.updated_at
    if newest is not None:
        activity = max(activity, newest.recorded_at)
    return session_expiry(session, activity, default_ttl) <= at


def new_session(user: UserKey, session_id: str, moment: datetime) -> Session:
    return Session(
        key=session_key(user, session_id),
        user_key=user,
        session_id=session_id,
        title="",
        created_at=moment,
        updated_at=moment,
    )


def begun_anew(session: Session, last_seq: int) -> Session:
    """The same session, empty, going on with the next seq."""
    return msgspec.structs.replace(
        session,
        title="",
        first_seq=last_seq + 1,
        last_seq=last_seq,
        summary=Summary(version=session.summary.version + 1, covers_through=last_seq),
        expires_at=NEVER,
    )


def title_of(turn: Turn) -> str:
    """A title without a model call: the first characters of the first message."""
    texts = [message.content for message in turn.messages if message.content]
    return " ".join(texts[0].split())[:TITLE_CHARACTERS] if texts else ""
