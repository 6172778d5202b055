"""What a store holds and readers may see: what has expired or ended is hidden before its sweep."""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import datetime

import msgspec

from memory.ids import SessionKey
from memory.models import Session, Turn
from memory.stores.base import SessionsStore, TurnsStore

PAGE = 20  # turns read at once to find the oldest that has not expired


async def unexpired(turns: TurnsStore, session: Session, moment: datetime) -> Session | None:
    """The session without its messages that have expired by `moment`, swept or not; None if those
    are all. A title that was taken from one of them is taken from the first that is left.

    Raises StoreUnavailable.
    """
    if session.summary.expires_at <= moment:
        hidden = msgspec.structs.replace(session.summary, text="", tokens=0)
        session = msgspec.structs.replace(session, summary=hidden)
    title, after = session.title, session.first_seq - 1
    while found := await turns.range(session.key, after=after, limit=PAGE):
        for turn in found:
            if turn.expires_at > moment:
                return msgspec.structs.replace(
                    session, first_seq=turn.seq, title=title or turn.title
                )
            if title == turn.title:
                title = ""
        after = found[-1].last_seq
    return None


async def in_living_sessions(
    turns: Collection[Turn], *, sessions: SessionsStore, moment: datetime, default_ttl: float
) -> list[Turn]:
    """These turns without those whose session, or whose life of it, has ended by `moment`: for
    `ttl.memory = "session"`, where memories end with their session. Raises StoreUnavailable."""
    newest = {turn.session_key: turn for turn in sorted(turns, key=lambda turn: turn.seq)}
    begins: dict[SessionKey, float] = {}
    for key, last in newest.items():
        session = await sessions.get(key)
        if session is not None:
            over = session.has_ended(last, moment, default_ttl)
            begins[key] = math.inf if over else session.first_seq
    return [turn for turn in turns if turn.seq >= begins.get(turn.session_key, 0)]
