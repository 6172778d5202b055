"""Recording: messages that come without a model call, in order, each once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from memory.errors import InvalidInput, StoreUnavailable
from memory.ids import MessageId, SessionKey
from memory.log.transitions import Incoming, client_key, recorded_turn
from memory.log.turn_log import RACES, TurnLog
from memory.models import Turn, User, session_key


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """`message_ids` are those of all given messages in order, duplicates included."""

    accepted: int
    duplicates: int
    last_seq: int
    message_ids: tuple[MessageId, ...]


class Recorder:
    def __init__(self, log: TurnLog) -> None:
        self._log = log

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are skipped.

        Raises InvalidInput (nothing is stored then), SessionBusy, TooManyWaiting, Stopping,
        StoreUnavailable.
        """
        for index, incoming in enumerate(messages):
            if incoming.role not in ("user", "assistant"):
                raise InvalidInput(f"messages[{index}].role", "must be user or assistant", done=0)
            if not incoming.content.strip():
                raise InvalidInput(f"messages[{index}].content", "must not be blank", done=0)
        key = session_key(user.key, session_id)
        config = self._log.config.current
        wait_seconds = config.session.wait
        wait_until = time.monotonic() + wait_seconds
        await self._log.queue.acquire(
            key, wait_seconds=wait_seconds, most_waiting=config.limits.waiting_per_session
        )
        try:
            return await self._record(user, session_id, key, messages, wait_until)
        finally:
            self._log.queue.release(key)
            self._log.note_change(key)

    async def _record(
        self,
        user: User,
        session_id: str,
        key: SessionKey,
        messages: Sequence[Incoming],
        wait_until: float,
    ) -> Recorded:
        names = [client_key(key, m.id) for m in messages if m.id is not None]
        known = await self._known(user, names)
        stored: dict[int, MessageId] = {}  # by place in `messages`; those of lost races stay
        for _race in range(RACES):
            opened = await self._log.lease.open(user, session_id, key, wait_until=wait_until)
            fresh: list[Turn] = []
            places: list[int] = []
            ids = dict(stored)
            for place, incoming in enumerate(messages):
                if place in stored:
                    continue
                name = client_key(key, incoming.id) if incoming.id is not None else None
                if name in known:
                    ids[place] = known[name]
                    continue
                turn = recorded_turn(
                    user,
                    session_id,
                    opened.last_seq + len(fresh) + 1,
                    incoming,
                    ttl=self._log.config.current.ttl.memory,
                    counter=self._log.counter,
                )
                fresh.append(turn)
                places.append(place)
                ids[place] = turn.messages[0].id
                if name is not None:
                    known[name] = ids[place]
            inserted = (await self._log.append(opened, fresh))[0] if fresh else 0
            stored.update((place, ids[place]) for place in places[:inserted])
            if inserted == len(fresh):
                return Recorded(
                    accepted=len(stored),
                    duplicates=len(messages) - len(stored),
                    last_seq=opened.last_seq + len(fresh),
                    message_ids=tuple(ids[place] for place in range(len(messages))),
                )
            known = await self._known(user, names)
        raise StoreUnavailable("another process writes to this session without end")

    async def _known(self, user: User, names: Sequence[str]) -> dict[str | None, MessageId]:
        """Ids of the messages that were recorded before, by what names them in the store."""
        turns = await self._log.store.turns.by_idempotency(user.key, names)
        return {name: turn.messages[0].id for name, turn in turns.items()}
