"""The outermost ASGI layer: request ids, the access log, and what is refused before anything is
parsed. A request without a valid credential is looked at no further."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog

from service.auth.authenticators import Auth
from service.http.problems import MEDIA_TYPE, Problem

log = structlog.get_logger("strata.http")

Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Scope, Any, Send], Awaitable[None]]

MAX_URL_BYTES = 8_000
MAX_HEADER_BYTES = 32_000
MAX_HEADERS = 100
_REQUEST_ID = re.compile(rb"\A[\x21-\x7e]{1,128}\Z")


class RequestMiddleware:
    """Wraps the application. `scope["state"]` gets `request_id`, `started` (time.perf_counter())
    and, from the authenticator, `who` for the access log."""

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode("ascii") if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        scope["state"]["started"] = started
        status = 0

        async def send_marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            problem = _malformed(scope) or self._auth.refusal(scope)
            if problem is not None:
                await _send_problem(problem, request_id, send_marked)
            else:
                await self._app(scope, receive, send_marked)
        finally:
            log.info(
                "request",
                method=scope["method"],
                route=scope.get("path_template", ""),
                **scope["state"].get("who", {}),
                status=status,
                duration_ms=round((time.perf_counter() - started) * 1000, 1),
            )


def _malformed(scope: Scope) -> Problem | None:
    url = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    if url > MAX_URL_BYTES:
        return Problem(414, f"the URL is longer than {MAX_URL_BYTES} bytes")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES or len(scope["headers"]) > MAX_HEADERS:
        return Problem(
            431, f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of headers"
        )
    if b"%2f" in scope.get("raw_path", b"").lower():
        return Problem(404, "no path has an encoded slash")
    return None


async def _send_problem(problem: Problem, request_id: str, send: Send) -> None:
    body = problem.body(request_id)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        # The rest of the request is not read.
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers().items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
