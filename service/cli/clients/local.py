"""The stores, opened in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from memory import Incoming, User
from memory.errors import NotFound
from memory.models import Message
from service.cli.clients.base import SESSIONS
from service.http.bodies import TurnBody
from service.http.shapes import session_out
from service.observability.probes import probe
from service.services import Services
from service.streaming.events import builtins_of
from service.streaming.response import live


class LocalClient:
    """One user's memory in stores that this process has opened."""

    def __init__(self, services: Services, user: User) -> None:
        self._services = services
        self._user = user

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        body = TurnBody(message=message)
        generation = await self._services.answers.begin_turn(self._user, session_id, body)
        async for events in live(generation):
            for event in events:
                yield builtins_of(event)

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        owner = User(self._user.tenant, user)
        done = await self._services.strata.memory.record(owner, session_id, messages)
        return done.accepted, done.duplicates

    async def sessions(self, cursor: Any) -> tuple[list[str], Any]:
        history = self._services.strata.history
        page, after = await history.sessions(self._user, before=cursor, limit=SESSIONS)
        return [session.session_id for session in page], after

    async def messages(
        self, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], bool]:
        history = self._services.strata.history
        try:
            page, older = await history.messages(self._user, session_id, before=before, limit=limit)
        except NotFound:
            return [], False
        return page, older is not None

    async def count(self, session_id: str) -> int:
        try:
            session = await self._services.strata.history.session(self._user, session_id)
        except NotFound:
            return 0
        return session_out(session).messages

    async def ready(self) -> dict[str, Any]:
        await self._services.strata.embeddings_loaded.wait()
        return {"status": "ready", **await probe(self._services)}

    async def caught_up(self) -> None:
        await self._services.strata.caught_up()
