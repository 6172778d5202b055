"""Recorder: messages that come without a model call, in order, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from memory.config import MemoryConfig
from memory.errors import InvalidInput, StoreUnavailable
from memory.ids import SessionKey
from memory.log.session_lease import Opening, last_seq
from memory.log.session_queue import SessionQueue
from memory.log.transitions import Incoming, client_key, recorded_turn
from memory.models import Turn, User, session_key
from memory.stores.base import Store
from memory.tokens import TokenCounter

_RACES = 20


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """`message_ids` are those of all given messages in order, duplicates included."""

    accepted: int
    duplicates: int
    last_seq: int
    message_ids: tuple[str, ...]


class Recorder:
    def __init__(
        self,
        *,
        store: Store,
        opening: Opening,
        counter: TokenCounter,
        config: MemoryConfig,
        gates: SessionQueue,
        wake: Callable[[SessionKey], None],
    ) -> None:
        self._store = store
        self._opening = opening
        self._counter = counter
        self._config = config
        self._gates = gates
        self._wake = wake

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are
        skipped. Raises InvalidInput, SessionBusy, StoreUnavailable; `done` says how many of the
        given messages were dealt with before the fault."""
        for index, incoming in enumerate(messages):
            if incoming.role not in ("user", "assistant"):
                raise InvalidInput(f"messages[{index}].role", "must be user or assistant", done=0)
            if not incoming.content.strip():
                raise InvalidInput(f"messages[{index}].content", "must not be blank", done=0)
        key = session_key(user.key, session_id)
        wait_until = time.monotonic() + self._config.session.wait
        await self._gates.acquire(key, wait_seconds=self._config.session.wait)
        try:
            return await self._record(user, session_id, key, messages, wait_until)
        finally:
            self._gates.release(key)
            self._wake(key)

    async def _record(
        self,
        user: User,
        session_id: str,
        key: SessionKey,
        messages: Sequence[Incoming],
        wait_until: float,
    ) -> Recorded:
        names = [client_key(key, m.id) for m in messages if m.id is not None]
        known = {
            name: turn.messages[0].id
            for name, turn in (await self._store.turns.by_idempotency(user.key, names)).items()
        }
        stored: dict[int, str] = {}  # ids by place in `messages`, also of tries that lost a race
        for _race in range(_RACES):
            opened = await self._opening.session(user, session_id, wait_until=wait_until)
            seq = last_seq(opened.loaded)
            fresh: list[Turn] = []
            places: list[int] = []
            ids = dict(stored)
            for place, incoming in enumerate(messages):
                name = client_key(key, incoming.id) if incoming.id is not None else None
                if place in stored:
                    continue
                if name in known:
                    ids[place] = known[name]
                    continue
                turn = recorded_turn(
                    user,
                    session_id,
                    seq + len(fresh) + 1,
                    incoming,
                    ttl=self._config.ttl.memory,
                    counter=self._counter,
                )
                fresh.append(turn)
                places.append(place)
                ids[place] = turn.messages[0].id
                if name is not None:
                    known[name] = ids[place]
            inserted = (await self._opening.append(opened, fresh))[0] if fresh else 0
            stored.update((place, ids[place]) for place in places[:inserted])
            if inserted == len(fresh):
                return Recorded(
                    accepted=len(stored),
                    duplicates=len(messages) - len(stored),
                    last_seq=seq + len(fresh),
                    message_ids=tuple(ids[place] for place in range(len(messages))),
                )
            again = await self._store.turns.by_idempotency(user.key, names)
            known = {name: turn.messages[0].id for name, turn in again.items()}
        raise StoreUnavailable("another process writes to this session without end")
