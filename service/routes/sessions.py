"""`/v1/sessions`: a user's conversations, and the context that a turn in one would send."""

from __future__ import annotations

from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from memory import User
from service.http.bodies import ContextBody, SessionBody, session_changes
from service.http.cursors import read_cursor, write_cursor
from service.http.request import PageLimit, check_session_id, check_text
from service.http.shapes import ContextOut, DeletedOut, SessionOut, SessionsOut, session_out
from service.services import Services


class Sessions(Controller):
    path = "/v1/sessions"
    tags = ("sessions",)

    @get("/", summary="This user's sessions, newest activity first")
    async def list_all(
        self,
        user: NamedDependency[User],
        services: NamedDependency[Services],
        cursor: FromQuery[str | None] = None,
        limit: PageLimit = 50,
    ) -> SessionsOut:
        before = read_cursor(cursor) if cursor else None
        page, after = await services.strata.history.sessions(user, before=before, limit=limit)
        return SessionsOut([session_out(s) for s in page], write_cursor(*after) if after else None)

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

    @post("/{session_id:str}/context", status_code=200, summary="What a turn would send")
    async def context(
        self,
        session_id: FromPath[str],
        data: JSONBody[ContextBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> ContextOut:
        check_session_id(session_id)
        most = services.config.current.limits.message
        check_text("query", data.query, max_bytes=most)
        check_text("system", data.system, max_bytes=most, blank=True)
        context = await services.answers.preview(user, session_id, data)
        return ContextOut(list(context.messages), context.receipt)
