"""`POST /v1/sessions/{id}/turns`, and `/v1/turns/{id}`: read it again, or end it early."""

from __future__ import annotations

from typing import Any

import structlog
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody

from memory import User
from memory.errors import Answered, Stopping
from memory.ids import TurnId
from memory.models import Turn, session_key
from service.http.bodies import TurnBody
from service.http.problems import Problem
from service.http.request import (
    EVENT_STREAM,
    StrictRequest,
    check_metadata,
    check_session_id,
    check_text,
    idempotency_key,
    wants_stream,
)
from service.http.shapes import CancelOut, TurnOut, answer_out, turn_out
from service.services import Services
from service.streaming.events import BEGINNING, SseEncoder, cursor_of
from service.streaming.generation import Generation
from service.streaming.replay import replay, run_read
from service.streaming.response import EventStream, ended, live

CLIENT_LEFT = 499  # only the access log shows it
_REPLAYED = {"Idempotency-Replayed": "true"}
EVENTS = ResponseSpec(
    data_container=str,
    media_type=EVENT_STREAM,
    generate_examples=False,
    description="accepted, context, token…, then done or error (stream), or the turn as JSON",
)


class Turns(Controller):
    path = "/v1"
    tags = ("turns",)

    @post(
        "/sessions/{session_id:str}/turns",
        status_code=200,
        responses={200: EVENTS},
        summary="Say something and stream the answer",
    )
    async def create(
        self,
        request: StrictRequest,
        session_id: FromPath[str],
        data: JSONBody[TurnBody],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> Response[Any]:
        """Creates the session on first use. SSE unless only JSON is accepted."""
        check_session_id(session_id)
        key = idempotency_key(request, stored=data.memory is True)
        streamed = wants_stream(data.stream, request.headers.get("accept"))
        most = services.config.current.limits.message
        check_text("message", data.message, max_bytes=most)
        check_text("system", data.system, max_bytes=most, blank=True)
        check_metadata(data.metadata)
        if services.answers.draining:
            raise Stopping
        hashed = session_key(user.key, session_id).partition(".")[2][:12]
        request.scope["state"]["who"]["session"] = hashed
        structlog.contextvars.bind_contextvars(user=user.key[:12], session=hashed)
        slot = services.admission.take(user.key)
        try:
            generation = await services.answers.begin_turn(
                user,
                session_id,
                data,
                key=key,
                slot=slot,
                started=request.scope["state"].get("started"),
            )
            if streamed:
                slot.hold()  # for the response
                encoder = SseEncoder(generation.run_id)
                return EventStream(live(generation), encoder, slot.release)
            if not await ended(generation, request.receive):
                return Response(b"", status_code=CLIENT_LEFT)
        except Answered as answered:
            turn = answered.turn
            if not streamed:
                return Response(turn_out(turn), headers=_REPLAYED)
            slot.hold()
            return EventStream(
                replay(services.strata, user, turn, BEGINNING, stopping=services.answers.drained),
                SseEncoder(run_read(turn, BEGINNING)),
                slot.release,
                _REPLAYED,
            )
        finally:
            slot.release()
        return Response(
            answer_out(generation, session_id, data, count=services.strata.counter.count)
        )

    @get("/turns/{turn_id:str}", summary="One turn, with its receipt")
    async def show(
        self,
        turn_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> TurnOut:
        return turn_out(await services.strata.history.turn(user, TurnId(turn_id)))

    @get(
        "/turns/{turn_id:str}/events",
        responses={200: EVENTS},
        summary="The events of a turn again, from Last-Event-ID on",
    )
    async def events(
        self,
        request: StrictRequest,
        turn_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> EventStream:
        """Live while the turn runs, whichever worker runs it; else from the store. The model is
        not called again."""
        if not wants_stream(None, request.headers.get("accept")):
            raise Problem(406, "Accept must name text/event-stream")
        turn, generation = await _find(services, user, turn_id)
        cursor = cursor_of(request.headers.get("last-event-id"), turn.id)
        slot = services.admission.take(user.key)
        if generation is not None and cursor.attempt in (None, turn.attempt):
            feed = live(generation, cursor)
        else:
            feed = replay(services.strata, user, turn, cursor, stopping=services.answers.drained)
        return EventStream(feed, SseEncoder(run_read(turn, cursor)), slot.release)

    @post(
        "/turns/{turn_id:str}/cancel",
        status_code=202,
        summary="End a running turn; what was streamed is kept",
    )
    async def cancel(
        self,
        turn_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> CancelOut:
        """Harmless for a turn that has ended. A turn that runs elsewhere ends within a second."""
        turn, generation = await _find(services, user, turn_id)
        if generation is not None:
            generation.stop("cancelled")
        elif turn.status == "running":
            await services.strata.store.signals.send(turn, cancel=True, watched=None)
        return CancelOut(turn.id, turn.status)


async def _find(services: Services, user: User, turn_id: str) -> tuple[Turn, Generation | None]:
    """The turn, and what makes its answer if that is here; a turn that runs nowhere has ended."""
    turn = await services.strata.history.turn(user, TurnId(turn_id))
    generation = services.answers.find(turn)
    if generation is None:
        turn = await services.strata.history.current_turn(user, turn)
    return turn, generation
