"""Pure: when turns and sessions end, and what a session is that begins anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from memory.ids import UserKey
from memory.models import NEVER, Session, Summary, Turn, now, session_key
from memory.stores.base import LoadedSession

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
    """When a session ends if nothing is said after `last_activity`; ttls are seconds."""
    ttl = default_ttl if session.ttl_seconds is None else session.ttl_seconds
    return expiry_of(last_activity, ttl)


def has_ended(session: Session, newest: Turn | None, at: datetime, default_ttl: float) -> bool:
    """Whether its ttl after the last activity is over, or it is being erased and nothing has been
    said in it since. `newest` is its newest turn, which its document need not know of yet."""
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
    """The same session in a new life: empty, going on with the next seq."""
    return msgspec.structs.replace(
        session,
        title="",
        first_seq=last_seq + 1,
        last_seq=last_seq,
        summary=Summary(version=session.summary.version + 1, covers_through=last_seq),
        expires_at=NEVER,
    )


def fields_of_new_life(fresh: Session) -> dict[str, Any]:
    """What a store has to set so that its document begins anew as `fresh` does. `last_seq` is
    missing: a turn that was inserted meanwhile may have raised it."""
    return {
        "title": "",
        "first_seq": fresh.first_seq,
        "summary": fresh.summary,
        "expires_at": fresh.expires_at,
    }


def last_seq_of(loaded: LoadedSession) -> int:
    """The seq of its last message, 0 without any."""
    newest = loaded.turns[0].last_seq if loaded.turns else 0
    return max(newest, loaded.session.last_seq if loaded.session else 0)


def session_now(
    user: UserKey, session_id: str, loaded: LoadedSession, default_ttl: float
) -> Session:
    """The session as it counts at this moment: new, begun anew, or (the very same object) as it
    was loaded."""
    session = loaded.session
    if session is None:
        return new_session(user, session_id, now())
    newest = loaded.turns[0] if loaded.turns else None
    if has_ended(session, newest, now(), default_ttl):
        return begun_anew(session, last_seq_of(loaded))
    return session


def finished(turns: Sequence[Turn]) -> list[Turn]:
    """Those of the turns that have ended and not expired."""
    moment = now()
    return [turn for turn in turns if turn.status != "running" and turn.expires_at > moment]


def title_of(turn: Turn) -> str:
    """A title without a model call: the first characters of the first message."""
    texts = [message.content for message in turn.messages if message.content]
    return " ".join(texts[0].split())[:TITLE_CHARACTERS] if texts else ""
