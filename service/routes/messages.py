"""`/v1/sessions/{id}/messages`: the history of a session, and messages without a model's answer."""

from __future__ import annotations

from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from memory import User
from service.http.bodies import MessagesBody, incoming
from service.http.request import PageLimit, check_session_id
from service.http.shapes import HistoryOut, RecordedOut
from service.services import Services


class Messages(Controller):
    path = "/v1/sessions/{session_id:str}/messages"
    tags = ("sessions",)

    @get("/", summary="History, newest page first")
    async def history(
        self,
        session_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
        before: Annotated[int | None, QueryParameter(ge=1, le=2**53)] = None,
        limit: PageLimit = 50,
    ) -> HistoryOut:
        check_session_id(session_id)
        messages, next_before = await services.strata.history.messages(
            user, session_id, before=before, limit=limit
        )
        return HistoryOut(messages, next_before)

    @post("/", summary="Record messages without calling a model")
    async def record(
        self,
        session_id: FromPath[str],
        data: JSONBody[MessagesBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> RecordedOut:
        check_session_id(session_id)
        messages = incoming(data, max_bytes=services.config.current.limits.message)
        done = await services.strata.memory.record(user, session_id, messages)
        return RecordedOut(done.accepted, done.duplicates, done.last_seq)
