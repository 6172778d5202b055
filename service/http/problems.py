"""Errors become RFC 9457 problem details once, here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from memory import errors

log = structlog.get_logger("strata.http")

MEDIA_TYPE = "application/problem+json"
_CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    413: "too_large",
    414: "url_too_long",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "too_many_requests",
    431: "headers_too_large",
    500: "internal_error",
    502: "model_error",
    503: "unavailable",
    504: "model_timeout",
}


class Problem(Exception):
    """An answer with a status other than success; `extra` becomes further members."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code or _CODES.get(status, "error")
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra

    def body(self, request_id: str) -> bytes:
        return msgspec.json.encode(
            {
                "type": "about:blank",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": self.detail,
                "code": self.code,
                "request_id": request_id,
                **self.extra,
            }
        )

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 asks for it
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        return headers


def from_error(error: BaseException) -> Problem:
    """The problem that an exception means to the client; a crash tells nothing of its inside."""
    match error:
        case Problem():
            return error
        case errors.InvalidInput():
            extra: dict[str, Any] = {"field": error.field}
            if error.done is not None:
                extra["accepted"] = error.done
            return Problem(400, str(error), **extra)
        case errors.BudgetExceeded():
            return Problem(
                422,
                str(error),
                code="budget_exceeded",
                needed_tokens=error.needed_tokens,
                budget_tokens=error.budget_tokens,
            )
        case errors.NotFound():
            return Problem(404, "there is no such thing")
        case errors.SessionBusy():
            return Problem(
                409, str(error), code="session_busy", retry_after_seconds=error.retry_after_seconds
            )
        case errors.TooManyWaiting():
            return Problem(
                429,
                str(error),
                code="too_many_waiting",
                retry_after_seconds=error.retry_after_seconds,
            )
        case errors.KeyReused():
            return Problem(422, str(error), code="idempotency_key_reused")
        case errors.TurnRunning():
            return Problem(
                409,
                str(error),
                code="turn_running",
                retry_after_seconds=error.retry_after_seconds,
                turn_id=error.turn_id,
            )
        case errors.TurnSuperseded():
            return Problem(409, str(error), code="turn_superseded", turn_id=error.turn_id)
        case errors.Stopping():
            return Problem(
                503, "the service is stopping", code="shutting_down", retry_after_seconds=1
            )
        case errors.StoreUnavailable():
            return Problem(
                503,
                "the store does not answer; nothing was changed",
                code="store_unavailable",
                retry_after_seconds=1,
            )
        case errors.EraseUnfinished():
            return Problem(503, error.advice, code="index_unavailable")
        case errors.IndexUnavailable():
            return Problem(
                503,
                "the index does not answer; try again",
                code="index_unavailable",
                retry_after_seconds=1,
            )
        case ValidationException():
            return Problem(400, _validation_detail(error))
        case HTTPException(status_code=413):
            return Problem(413, "the body is larger than limits.body allows")
        case HTTPException():
            return Problem(error.status_code, error.detail or "")
    return Problem(500, "an unexpected error; the request id finds it in the log")


def _validation_detail(error: ValidationException) -> str:
    """Names the fields and what is wrong with them."""
    extra = error.extra if isinstance(error.extra, list) else []
    parts = []
    for item in extra:
        if isinstance(item, Mapping):
            key, message = item.get("key", "body"), item.get("message", "is not valid")
            if key == "data":  # Litestar's name for the body as a whole
                key, message = "body", "is empty" if message == "'data'" else message
            parts.append(f"{key}: {message}")
    return "; ".join(parts) or error.detail


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's handler for every exception."""
    problem = from_error(error)
    if problem.status >= 500:
        log.error(
            "request.failed",
            status=problem.status,
            error=type(error).__name__,
            detail=errors.reason(error) or problem.detail,
            exc_info=error if problem.status == 500 else None,
        )
    return Response(
        problem.body(str(request.scope.get("state", {}).get("request_id", ""))),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers(),
    )
