"""`GET /v1/memories`: search everything this user has said and been told."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from memory import User
from memory.interchange.conversations import aware
from service.http.shapes import MemoriesOut, MemoryOut, check_session_id, check_text
from service.routes.sessions import Limit
from service.services import Services


class Memories(Controller):
    path = "/v1/memories"
    tags = ("memories",)

    @get("/", summary="Search, or list newest first")
    async def search(
        self,
        user: NamedDependency[User],
        services: NamedDependency[Services],
        q: FromQuery[str | None] = None,
        limit: Limit = 50,
        session_id: FromQuery[str | None] = None,
        since: FromQuery[datetime | None] = None,
        until: FromQuery[datetime | None] = None,
        role: Annotated[Literal["user", "assistant"] | None, QueryParameter()] = None,
    ) -> MemoriesOut:
        if session_id is not None:
            check_session_id(session_id)
        if q is not None:
            check_text("q", q, max_bytes=services.settings.limits.message)
        found = await services.strata.history.memories(
            user,
            query=q,
            limit=limit,
            session_id=session_id,
            since=aware(since),
            until=aware(until),
            role=role,
        )
        return MemoriesOut(
            [
                MemoryOut(
                    message_id=item.message.id,
                    session_id=item.session_id,
                    seq=item.message.seq,
                    role=item.message.role,
                    content=item.message.content,
                    created_at=item.message.created_at,
                    score=round(item.score, 4),
                    dense_rank=item.dense_rank,
                    lexical_rank=item.lexical_rank,
                )
                for item in found.items
            ],
            list(found.degraded),
        )
