"""What an idempotency key means for a turn. The record of a key is the turn itself.

A key counts for 24 hours within its user. Repeated, it gives the answer there is, or runs a turn
that has failed once more: the same turn and user message, the next attempt.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from memory.config import ConfigSource, MemoryConfig
from memory.errors import Answered, KeyReused, TurnRunning, TurnSuperseded
from memory.log.session_lease import OpenedSession, SessionLease
from memory.log.session_tails import SessionTails
from memory.log.transitions import RERUNNABLE, begun_again, user_turn_key
from memory.models import Turn, now
from memory.sessions.visibility import in_living_sessions
from memory.stores.base import Store
from memory.turn_request import TurnRequest

KEPT = timedelta(hours=24)
RETRY_SECONDS = 1.0


class Idempotency:
    def __init__(
        self,
        *,
        store: Store,
        lease: SessionLease,
        tails: SessionTails,
        config: ConfigSource[MemoryConfig],
    ) -> None:
        self._store = store
        self._lease = lease
        self._tails = tails
        self._config = config

    async def find(self, request: TurnRequest, *, first_in_queue: bool) -> Turn | None:
        """The turn of the request's key that may have to run again; None for a new key, or none.

        `first_in_queue`: the caller holds the queue of its session, and so may find a turn whose
        writer is gone. Raises Answered, KeyReused, TurnRunning, StoreUnavailable.
        """
        if request.idempotency_key is None:
            return None
        name = user_turn_key(request.idempotency_key)
        turn = (await self._store.turns.by_idempotency(request.user.key, [name])).get(name)
        if turn is None:
            return None
        moment = now()
        if turn.recorded_at + KEPT <= moment or turn.expires_at <= moment:
            await self._store.turns.forget_key(turn)
            return None
        if (turn.body_hash or "") != request.body_hash:
            raise KeyReused
        if turn.status == "running":
            if not first_in_queue or not self._lease.is_over(turn):
                raise TurnRunning(turn.id, RETRY_SECONDS)
        elif turn.status not in RERUNNABLE:
            answered = await self._readable(turn)
            if answered is not None:
                raise Answered(answered)
            await self._store.turns.forget_key(turn)  # its answer may not be read any more
            return None
        return turn

    async def _readable(self, turn: Turn) -> Turn | None:
        """The whole turn, if it has not expired and its session has not ended."""
        moment, ttl = now(), self._config.current.ttl
        whole = await self._store.turns.get(turn.id, now=moment)
        if whole is None or ttl.memory != "session":
            return whole
        living = await in_living_sessions(
            [whole], sessions=self._store.sessions, moment=moment, default_ttl=ttl.session
        )
        return living[0] if living else None

    async def run_again(self, turn: Turn, opened: OpenedSession) -> Turn | None:
        """The turn as it runs now, for the first in its session's queue, which has opened it; None
        when another worker has changed it meanwhile. Raises TurnSuperseded, StoreUnavailable."""
        newest = opened.loaded.turns[0] if opened.loaded.turns else None
        if newest is None or newest.id != turn.id or turn.seq < opened.session.first_seq:
            raise TurnSuperseded(turn.id)
        was = await self._store.turns.get(turn.id, now=now())
        if was is None or was.status not in RERUNNABLE:
            return None
        again = begun_again(was, lease_seconds=self._config.current.session.lease)
        try:
            if not await self._store.turns.rerun(again, was=was):
                return None
            # Symmetric check: an append re-reads the last turn after inserting, this re-reads the
            # newest after re-running. One of the two always sees the other.
            there = (await self._store.turns.load(turn.session_key, limit=1)).turns
            if there and there[0].id != turn.id:
                await self._store.turns.save(
                    msgspec.structs.replace(was, fencing_token=again.fencing_token)
                )
                raise TurnSuperseded(turn.id)
        except BaseException:
            self._tails.abandon(again)  # a server may have stored it all the same
            raise
        return again if there else None  # None: it was erased meanwhile
