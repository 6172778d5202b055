"""`POST /v1/sessions/{id}/turns`, and `/v1/turns/{id}`: its events again, its end before time."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import HTTPResponseBodyEvent, Receive, Send

from memory import TurnRequest, User
from memory.errors import Answered, InvalidInput, NotFound, Stopping
from memory.models import Turn, TurnError, session_key
from service.http.problems import Problem
from service.http.request import StrictRequest
from service.http.shapes import (
    CancelOut,
    MessageOut,
    TurnBody,
    TurnOut,
    check_metadata,
    check_session_id,
    check_text,
    turn_out,
)
from service.services import Services
from service.streaming.admission import Slot
from service.streaming.events import BEGINNING, place_of, run_of
from service.streaming.generation import Generation
from service.streaming.replay import replay

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
_KEY = "idempotency-key"
_KEY_TEXT = re.compile(r"\A[\x21-\x7e]{1,255}\Z")
_REPLAYED = {"Idempotency-Replayed": "true"}
EVENTS = ResponseSpec(
    data_container=str,
    media_type=_SSE,
    generate_examples=False,
    description="accepted, context, token…, then done or error (stream), or the turn as JSON",
)


class _EventResponse(ASGIStreamingResponse):
    """Ends when the client has left, and closes its iterator; else that waits for the garbage
    collector. One task watches the client: an answer may be open for long, and there are many."""

    slot: Slot

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.slot.release()

    async def send_body(self, send: Send, receive: Receive) -> None:
        events: Any = self.iterator
        assert isinstance(events, AsyncGenerator)

        def end(_: asyncio.Task[None]) -> None:
            with suppress(RuntimeError):  # it has ended by itself
                reading.reschedule(0)

        leaving = asyncio.create_task(_left(receive), name="client")
        try:
            async with asyncio.timeout(None) as reading:
                leaving.add_done_callback(end)
                async for chunk in events:
                    await send(_part(chunk, more=True))
                await send(_part(b"", more=False))
        except TimeoutError:
            if not reading.expired():
                raise
        finally:
            leaving.cancel()
            await events.aclose()


def _part(body: bytes, *, more: bool) -> HTTPResponseBodyEvent:
    return {"type": "http.response.body", "body": body, "more_body": more}


class EventStream(Stream):
    """Server-sent events that are encoded already. Lets `slot` go when it has been sent."""

    def __init__(
        self, events: AsyncIterator[bytes], slot: Slot, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(events, media_type=_SSE, headers={**_SSE_HEADERS, **(headers or {})})
        self.slot = slot

    def to_asgi_response(self, *_: Any, **given: Any) -> ASGIStreamingResponse:
        assert isinstance(self.iterator, AsyncGenerator)
        response = _EventResponse(
            iterator=self.iterator,
            headers=self.headers,
            media_type=self.media_type,
            status_code=given.get("status_code"),
        )
        response.slot = self.slot
        return response


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
        key = idempotency_key(request.headers.getall(_KEY, []), data)
        streamed = wants_stream(data.stream, request.headers.get("accept"))
        limit = services.settings.limits.message
        check_text("message", data.message, max_bytes=limit)
        check_text("system", data.system, max_bytes=limit, blank=True)
        check_metadata(data.metadata)
        if services.answers.draining:
            raise Stopping
        hashed = session_key(user.key, session_id).partition(".")[2][:12]
        request.scope["state"]["who"]["session"] = hashed
        structlog.contextvars.bind_contextvars(user=user.key[:12], session=hashed)
        slot = services.streams.take(user.key)
        try:
            producer = await begin_turn(
                services,
                user,
                session_id,
                data,
                key=key,
                slot=slot,
                started=request.scope["state"].get("started"),
            )
            if streamed:
                slot.hold()  # for the response
                return EventStream(producer.read(), slot)
            if not await _ended_before_leaving(producer, request):
                return Response(b"", status_code=CLIENT_LEFT)
        except Answered as answered:
            turn = answered.turn
            if streamed:
                slot.hold()
                return EventStream(replay(services, user, turn, BEGINNING), slot, _REPLAYED)
            return Response(turn_out(turn), headers=_REPLAYED)
        finally:
            slot.release()
        return Response(json_turn(producer, session_id, data, services.strata.counter.count))

    @get("/turns/{turn_id:str}", summary="One turn, with its receipt")
    async def show(
        self,
        turn_id: FromPath[str],
        user: NamedDependency[User],
        services: NamedDependency[Services],
    ) -> TurnOut:
        return turn_out(await services.strata.history.turn(user, turn_id))

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
        turn, producer = await _as_it_runs(services, user, turn_id)
        place = place_of(request.headers.get("last-event-id"), turn.id)
        slot = services.streams.take(user.key)
        if producer is not None and place.attempt in (None, turn.attempt):
            return EventStream(producer.read(place), slot)
        return EventStream(replay(services, user, turn, place), slot)

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
        turn, producer = await _as_it_runs(services, user, turn_id)
        if producer is not None:
            producer.stop("cancelled")
        elif turn.status == "running":
            await services.strata.store.signals.send(turn, cancel=True, watched=None)
        return CancelOut(turn.id, turn.status)


async def _as_it_runs(
    services: Services, user: User, turn_id: str
) -> tuple[Turn, Generation | None]:
    """The turn, and what produces its answer if that is here; if it is nowhere, it has ended."""
    turn = await services.strata.history.turn(user, turn_id)
    producer = services.answers.of(turn)
    if producer is None:
        turn = await services.strata.history.current_turn(user, turn)
    return turn, producer


def idempotency_key(given: list[str], body: TurnBody) -> str | None:
    """The key of a request. Raises Problem 400."""
    if not given:
        return None
    if len(given) > 1 or not _KEY_TEXT.match(given[0]):
        raise InvalidInput("Idempotency-Key", "once, 1 to 255 visible ASCII characters")
    if body.memory is not True:
        raise InvalidInput("Idempotency-Key", "needs `memory: true`: nothing else is stored")
    return given[0]


def body_hash(session_id: str, body: TurnBody) -> str:
    """What a request with the same key must have in common: all but the form of the answer."""
    same = msgspec.structs.replace(body, stream=None)
    return hashlib.sha256(msgspec.json.encode([session_id, same], order="sorted")).hexdigest()


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


async def _left(receive: Receive) -> None:
    """Until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended_before_leaving(producer: Generation, request: StrictRequest) -> bool:
    """Wait for the turn as one of its readers, for as long as the client does."""
    tasks = {asyncio.create_task(producer.wait()), asyncio.create_task(_left(request.receive))}
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
    key: str | None = None,
    slot: Slot | None = None,
    started: float | None = None,
) -> Generation:
    """Accept a turn (or build a stateless context) and start to produce its answer.

    Everything that can fail with a status fails here.
    """
    memory, settings = services.strata.memory, services.settings
    system = "\n\n".join(part for part in (settings.model.system, body.system) if part)
    ask = TurnRequest(
        user=user,
        session_id=session_id,
        question=body.message,
        recall=body.recall,
        system=system,
        metadata=body.metadata,
        idempotency_key=key,
        body_hash=body_hash(session_id, body) if key is not None else "",
    )
    model = await asyncio.shield(services.chat)
    accepted = context = None
    if body.memory is True:
        accepted = await memory.begin(ask)
        run = run_of(accepted.turn)
    else:
        context = await memory.preview(ask) if body.memory == "read" else memory.plain(ask)
        run = f"{uuid.uuid4().hex}.1"
    producer = Generation(
        count=services.strata.counter.count,
        model=model,
        model_name=services.model_name,
        settings=settings,
        metrics=services.metrics,
        ask=ask,
        options=body.options,
        flushing=services.answers.flushing,
        run_id=run,
        accepted=accepted,
        context=context,
        slot=slot,
        started=started,
    )
    services.answers.start(producer)
    return producer


def json_turn(
    producer: Generation, session_id: str, body: TurnBody, count: Callable[[str], int]
) -> TurnOut:
    """The ended turn. Raises Problem with the status of what went wrong."""
    accepted = producer.accepted_turn
    _raise_error(producer.error, accepted.id if accepted else None)
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


def _raise_error(error: TurnError | None, turn_id: str | None) -> None:
    if error is not None:
        raise Problem(
            _ERROR_STATUS.get(error.code, 502),
            error.message,
            code=error.code,
            retry_after_seconds=error.retry_after_s,
            turn_id=turn_id,
            retryable=error.retryable,
        )
