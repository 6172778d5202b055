"""How this process has left sessions and attempts: what saves the next turn a look at the store."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from cachetools import LRUCache

from memory.ids import SessionKey
from memory.models import Turn, now

KNOWN_TAILS = 10_000
KNOWN_ABANDONED = 1_000
ENDED_WELL = ("done", "partial")


class SessionTail(NamedTuple):
    """The last seq of a session, and when the session expires if nothing more is said in it."""

    last_seq: int
    expires_at: datetime


class SessionTails:
    def __init__(self) -> None:
        self._tails: LRUCache[SessionKey, SessionTail] = LRUCache(KNOWN_TAILS)
        self._abandoned: LRUCache[str, None] = LRUCache(KNOWN_ABANDONED)

    def keep(self, turn: Turn, *, expires_at: datetime) -> None:
        """A turn of this process has ended: if nothing comes between, the next one follows it."""
        if turn.status in ENDED_WELL:
            self._tails[turn.session_key] = SessionTail(turn.last_seq, expires_at)

    def take(self, key: SessionKey) -> int | None:
        """The last seq of the session if this process left it, for one try."""
        tail = self._tails.pop(key, None)
        return tail.last_seq if tail is not None and tail.expires_at > now() else None

    def abandon(self, turn: Turn) -> None:
        """Nobody in this process writes this attempt any more, whatever its lease says."""
        self._abandoned[turn.fencing_token] = None

    def is_abandoned(self, turn: Turn) -> bool:
        return turn.fencing_token in self._abandoned

    def forget_abandoned(self, turn: Turn) -> None:
        """The attempt was ended in the store: its token means nothing any more."""
        self._abandoned.pop(turn.fencing_token, None)
