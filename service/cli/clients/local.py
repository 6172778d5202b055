"""The stores, opened in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from memory import Incoming, User
from memory.errors import NotFound
from memory.models import Message
from service.cli.clients.base import SESSIONS
from service.http.shapes import TurnBody, session_out
from service.services import Services


class LocalClient:
    """One user's memory in stores that this process has opened."""

    def __init__(self, services: Services, user: User) -> None:
        self._services = services
        self._user = user

    async def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        import httpx

        from service.cli.clients.http import parse_events
        from service.routes.turns import begin_turn

        producer = await begin_turn(
            self._services, self._user, session_id, TurnBody(message=message)
        )
        response = httpx.Response(
            200, headers={"content-type": "text/event-stream"}, content=producer.read()
        )
        async for _, name, data in parse_events(response):
            yield name, data

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
        from service.routes.health import probe

        await self._services.strata.embeddings_loaded.wait()
        return {"status": "ready", **await probe(self._services)}

    async def caught_up(self) -> None:
        await self._services.strata.caught_up()
