"""`POST /v1/sessions/{id}/turns` and `GET /v1/turns/{id}`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import structlog
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send

from memory import Ask, User
from memory.errors import NotFound, Stopping
from memory.models import session_key
from service.lifespan import Services
from service.problems import Problem
from service.requests import StrictRequest
from service.schemas import (
    MessageOut,
    TurnBody,
    TurnOut,
    check_metadata,
    check_session_id,
    check_text,
    turn_out,
)
from service.stream import Producer

_ERROR_STATUS = {
    "model_error": 502,
    "model_timeout": 504,
    "not_persisted": 503,
    "shutting_down": 503,
    "erased": 409,
    "interrupted": 503,
}
CLIENT_LEFT = 499  # nobody reads it; it stands in the access log
_SSE = "text/event-stream"
_SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
EVENTS = ResponseSpec(
    data_container=str,
    media_type=_SSE,
    generate_examples=False,
    description="accepted, context, token…, then done or error (stream), or the turn as JSON",
)


class _ClosingResponse(ASGIStreamingResponse):
    """Closes its iterator when the client has left; else that waits for the garbage collector."""

    async def send_body(self, send: Send, receive: Receive) -> None:
        try:
            await super().send_body(send, receive)
        finally:
            assert isinstance(self.iterator, AsyncGenerator)
            await self.iterator.aclose()


class EventStream(Stream):
    """Server-sent events that are encoded already."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type=_SSE, headers=_SSE_HEADERS)

    def to_asgi_response(self, *_: Any, **given: Any) -> ASGIStreamingResponse:
        assert isinstance(self.iterator, AsyncGenerator)
        return _ClosingResponse(
            iterator=self.iterator,
            headers=self.headers,
            media_type=self.media_type,
            status_code=given.get("status_code"),
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
        if "idempotency-key" in request.headers:
            raise Problem(
                400, "Idempotency-Key is not supported yet: send it without", code="not_supported"
            )
        streamed = wants_stream(data.stream, request.headers.get("accept"))
        limit = services.settings.limits.message
        check_text("message", data.message, max_bytes=limit)
        check_text("system", data.system, max_bytes=limit, blank=True)
        check_metadata(data.metadata)
        if services.producers.draining:
            raise Stopping
        hashed = session_key(user.key, session_id).partition(".")[2][:12]
        request.scope["state"]["who"]["session"] = hashed
        structlog.contextvars.bind_contextvars(user=user.key[:12], session=hashed)
        producer = await begin_turn(
            services, user, session_id, data, started=request.scope["state"].get("started")
        )
        if streamed:
            return EventStream(producer.read())
        if not await _ended_before_leaving(producer, request):
            return Response(b"", status_code=CLIENT_LEFT)
        return Response(json_turn(producer, session_id, data, services.strata.counter.count))

    @get("/turns/{turn_id:str}", summary="One turn, with its receipt")
    async def show(
        self,
        turn_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> TurnOut:
        return turn_out(await services.strata.library.turn(user, turn_id))


def wants_stream(asked: bool | None, accept: str | None) -> bool:
    """The body's `stream` wins; else what Accept names. Raises Problem 406."""
    if asked is not None:
        return asked
    named = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    if _SSE in named:
        return True
    if "application/json" in named or "application/*" in named:
        return False
    if "*/*" in named or "text/*" in named:
        return True
    raise Problem(406, "Accept must name text/event-stream or application/json")


async def _ended_before_leaving(producer: Producer, request: StrictRequest) -> bool:
    """Wait for the turn as one of its readers, for as long as the client does."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = {asyncio.create_task(producer.wait()), asyncio.create_task(left())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return producer.finished


async def begin_turn(
    services: Services,
    user: User,
    session_id: str,
    body: TurnBody,
    *,
    started: float | None = None,
) -> Producer:
    """Accept a turn (or build a stateless context) and start to produce its answer.

    Everything that can fail with a status fails here.
    """
    memory, settings = services.strata.memory, services.settings
    system = "\n\n".join(part for part in (settings.model.system, body.system) if part)
    ask = Ask(
        user=user,
        session_id=session_id,
        question=body.message,
        recall=body.recall,
        system=system,
        metadata=body.metadata,
    )
    model = await asyncio.shield(services.chat)
    accepted = context = None
    if body.memory is True:
        accepted = await memory.accept(ask)
        run = f"{accepted.turn.id}.{accepted.turn.attempt}"
    else:
        context = await memory.preview(ask) if body.memory == "read" else memory.plain(ask)
        run = f"{uuid.uuid4().hex}.1"
    producer = Producer(
        memory=memory,
        model=model,
        model_name=services.model_name,
        settings=settings,
        ask=ask,
        options=body.options,
        run_id=run,
        accepted=accepted,
        context=context,
        started=started,
    )
    services.producers.start(producer)
    return producer


def json_turn(
    producer: Producer, session_id: str, body: TurnBody, count: Callable[[str], int]
) -> TurnOut:
    """The ended turn. Raises Problem with the status of what went wrong."""
    error = producer.error
    if error is not None:
        raise Problem(
            _ERROR_STATUS.get(error.code, 502),
            error.message,
            code=error.code,
            retry_after_seconds=error.retry_after_s,
            turn_id=producer.turn_id,
            retryable=error.retryable,
        )
    if producer.turn is not None:
        return turn_out(producer.turn)
    if body.memory is True:
        raise NotFound("turn")
    return TurnOut(
        turn_id=None,
        session_id=session_id,
        status=producer.status,
        attempt=1,
        user=MessageOut(
            role="user", content=body.message, status="done", tokens=count(body.message)
        ),
        assistant=MessageOut(
            role="assistant",
            content=producer.text,
            status=producer.status,
            tokens=count(producer.text),
        ),
        receipt=producer.receipt,
        usage=producer.usage,
        finish_reason=producer.finish_reason,
        error=None,
        metadata=body.metadata,
        model=producer.model_name,
    )
