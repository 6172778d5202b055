"""What an idempotency key means for a turn. The record of a key is the turn itself.

A key counts for 24 hours within its user. Repeated, it gives the answer there is, or runs a turn
that has failed once more: the same turn and user message, the next attempt.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec

from memory.config import TtlConfig
from memory.errors import Answered, KeyReused, TurnRunning, TurnSuperseded
from memory.log.session_lease import RUN_AGAIN, Opened, Opening
from memory.log.transitions import begun_again, user_turn_key
from memory.models import Turn, now
from memory.recall.hydration import of_living_sessions
from memory.stores.base import Store

KEPT = timedelta(hours=24)
RETRY_SECONDS = 1.0


class Idempotency:
    def __init__(self, *, store: Store, opening: Opening, ttl: TtlConfig) -> None:
        self._store = store
        self._opening = opening
        self._ttl = ttl

    async def known(self, user: str, key: str, body_hash: str, *, gated: bool) -> Turn | None:
        """The turn that may have to run again, None for a new key; `gated`: the caller holds the
        gate of its session. Raises Answered, KeyReused, TurnRunning, StoreUnavailable."""
        name = user_turn_key(key)
        turn = (await self._store.turns.by_idempotency(user, [name])).get(name)
        if turn is None:
            return None
        moment = now()
        if turn.recorded_at + KEPT <= moment or turn.expires_at <= moment:
            await self._store.turns.forget_key(turn)
            return None
        if turn.body_hash != body_hash:
            raise KeyReused
        if turn.status == "running":
            # Whoever holds the gate may be the one who writes it.
            if not gated or not self._opening.is_over(turn):
                raise TurnRunning(turn.id, RETRY_SECONDS)
        elif turn.status not in RUN_AGAIN:
            whole = await self._store.turns.get(turn.id, now=moment)
            living = await of_living_sessions(
                [whole] if whole else [], store=self._store, moment=moment, ttl=self._ttl
            )
            if living:
                raise Answered(living[0])
            await self._store.turns.forget_key(turn)  # nobody may read its answer any more
            return None
        return turn

    async def run_again(self, turn: Turn, opened: Opened, *, lease_seconds: float) -> Turn | None:
        """The turn as it runs now, for who holds the gate of its session and has opened it; None
        when another worker has changed it meanwhile. Raises TurnSuperseded."""
        newest = opened.loaded.turns[0] if opened.loaded.turns else None
        if newest is None or newest.id != turn.id or turn.seq < opened.session.first_seq:
            raise TurnSuperseded(turn.id)
        was = await self._store.turns.get(turn.id, now=now())
        if was is None or was.status not in RUN_AGAIN:
            return None
        again = begun_again(was, lease_seconds=lease_seconds)
        try:
            if not await self._store.turns.rerun(again, was=was):
                return None
            # Who appends to the session looks at this turn after its insert, as this looks there.
            there = (await self._store.turns.load(turn.session_key, limit=1)).turns
            if there and there[0].id != turn.id:
                await self._store.turns.save(
                    msgspec.structs.replace(was, fencing_token=again.fencing_token)
                )
                raise TurnSuperseded(turn.id)
        except BaseException:
            self._opening.abandoned(again)  # a server may have stored it all the same
            raise
        return again if there else None  # None: it was erased meanwhile
