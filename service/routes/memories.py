"""`GET /v1/memories`: search everything that this user has said and has been answered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from memory import User
from memory.interchange.batch import aware
from service.http.request import PageLimit, check_session_id, check_text
from service.http.shapes import MemoriesOut, memory_out
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
        limit: PageLimit = 50,
        session_id: FromQuery[str | None] = None,
        since: FromQuery[datetime | None] = None,
        until: FromQuery[datetime | None] = None,
        role: Annotated[Literal["user", "assistant"] | None, QueryParameter()] = None,
    ) -> MemoriesOut:
        if session_id is not None:
            check_session_id(session_id)
        if q is not None:
            check_text("q", q, max_bytes=services.config.current.limits.message)
        found = await services.strata.history.memories(
            user,
            query=q,
            limit=limit,
            session_id=session_id,
            since=aware(since),
            until=aware(until),
            role=role,
        )
        return MemoriesOut([memory_out(item) for item in found.items], list(found.degraded))
