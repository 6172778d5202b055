"""Sessions, their messages, and the context that a turn in them would send."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated

from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from memory import TurnRequest, User
from memory.errors import InvalidInput
from service.http.shapes import (
    ContextBody,
    ContextOut,
    DeletedOut,
    HistoryOut,
    MessagesBody,
    RecordedOut,
    SessionBody,
    SessionOut,
    SessionsOut,
    check_session_id,
    check_text,
    incoming,
    lowered,
    session_changes,
    session_out,
)
from service.services import Services

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]


class Sessions(Controller):
    path = "/v1/sessions"
    tags = ("sessions",)

    @get("/", summary="This user's sessions, newest activity first")
    async def list_all(
        self,
        user: NamedDependency[User],
        services: NamedDependency[Services],
        cursor: FromQuery[str | None] = None,
        limit: Limit = 50,
    ) -> SessionsOut:
        before = _read_cursor(cursor) if cursor else None
        page, after = await services.strata.history.sessions(user, before=before, limit=limit)
        return SessionsOut([session_out(s) for s in page], _cursor(*after) if after else None)

    @get("/{session_id:str}", summary="One session")
    async def show(
        self,
        session_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> SessionOut:
        check_session_id(session_id)
        return session_out(await services.strata.history.session(user, session_id))

    @patch("/{session_id:str}", summary="Change title, ttl or metadata")
    async def change(
        self,
        session_id: FromPath[str],
        data: JSONBody[SessionBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> SessionOut:
        check_session_id(session_id)
        changes = session_changes(data)
        return session_out(await services.strata.history.change(user, session_id, changes))

    @delete("/{session_id:str}", status_code=200, summary="Erase a session and all from it")
    async def erase(
        self,
        session_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> DeletedOut:
        check_session_id(session_id)
        return DeletedOut(await services.strata.history.delete_session(user, session_id))

    @get("/{session_id:str}/messages", summary="History, newest page first")
    async def history(
        self,
        session_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
        before: Annotated[int | None, QueryParameter(ge=1, le=2**53)] = None,
        limit: Limit = 50,
    ) -> HistoryOut:
        check_session_id(session_id)
        messages, next_before = await services.strata.history.messages(
            user, session_id, before=before, limit=limit
        )
        return HistoryOut(messages, next_before)

    @post("/{session_id:str}/messages", summary="Record messages without calling a model")
    async def record(
        self,
        session_id: FromPath[str],
        data: JSONBody[MessagesBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> RecordedOut:
        check_session_id(session_id)
        messages = incoming(data, max_bytes=services.settings.limits.message)
        done = await services.strata.memory.record(user, session_id, messages)
        return RecordedOut(done.accepted, done.duplicates, done.last_seq)

    @post("/{session_id:str}/context", status_code=200, summary="What a turn would send")
    async def context(
        self,
        session_id: FromPath[str],
        data: JSONBody[ContextBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> ContextOut:
        check_session_id(session_id)
        settings = services.settings
        check_text("query", data.query, max_bytes=settings.limits.message)
        check_text("system", data.system, max_bytes=settings.limits.message, blank=True)
        system = "\n\n".join(part for part in (settings.model.system, data.system) if part)
        context = await services.strata.memory.preview(
            TurnRequest(
                user=user,
                session_id=session_id,
                question=data.query,
                recall=data.recall,
                system=system,
                budget=lowered(settings.budget, data.budget),
            )
        )
        return ContextOut(list(context.messages), context.receipt)


def _cursor(updated_at: datetime, key: str) -> str:
    return base64.urlsafe_b64encode(f"{updated_at.isoformat()} {key}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        moment, _, key = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        updated_at = datetime.fromisoformat(moment)
        updated_at.timestamp()
        return updated_at, key
    except (binascii.Error, UnicodeError, ValueError, OverflowError):
        raise InvalidInput("cursor", "use next_cursor of the page before, unchanged") from None
