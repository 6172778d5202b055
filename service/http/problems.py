"""Errors as RFC 9457 problem details: the one place that knows the status of an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

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
    """An answer other than success. `code` is for programs, `detail` for people; `extra` becomes
    further members of the JSON."""

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


class _Kind(NamedTuple):
    """How one class of errors is answered. `detail` None is the error's own text; `members` are
    further members of the problem, each from an attribute of the error that is not None. An
    error's own `retry_after_seconds` goes before the one given here."""

    status: int
    code: str | None = None
    detail: str | None = None
    retry_after_seconds: float | None = None
    members: Mapping[str, str] = {}


_TURN = {"turn_id": "turn_id"}
_KINDS: dict[type[BaseException], _Kind] = {
    errors.InvalidInput: _Kind(400, members={"field": "field", "accepted": "done"}),
    errors.BudgetExceeded: _Kind(
        422,
        "budget_exceeded",
        members={"needed_tokens": "needed_tokens", "budget_tokens": "budget_tokens"},
    ),
    errors.NotFound: _Kind(404, detail="there is no such thing"),
    errors.SessionBusy: _Kind(409, "session_busy"),
    errors.TooManyWaiting: _Kind(429, "too_many_waiting"),
    errors.KeyReused: _Kind(422, "idempotency_key_reused"),
    errors.TurnRunning: _Kind(409, "turn_running", members=_TURN),
    errors.TurnSuperseded: _Kind(409, "turn_superseded", members=_TURN),
    errors.Stopping: _Kind(503, "shutting_down", "the service is stopping", 1),
    errors.StoreUnavailable: _Kind(
        503, "store_unavailable", "the store does not answer; nothing was changed", 1
    ),
    errors.EraseUnfinished: _Kind(503, "index_unavailable", errors.EraseUnfinished.advice),
    errors.IndexUnavailable: _Kind(
        503, "index_unavailable", "the index does not answer; try again", 1
    ),
}


def from_error(error: BaseException) -> Problem:
    """The problem that an exception means to the client; of a crash it shows nothing."""
    match error:
        case Problem():
            return error
        case ValidationException():
            return Problem(400, _validation_detail(error))
        case HTTPException(status_code=413):
            return Problem(413, "the body is larger than limits.body allows")
        case HTTPException():
            return Problem(error.status_code, error.detail or "")
    kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)
    if kind is None:
        return Problem(500, "an unexpected error; the request id finds it in the log")
    values = {name: getattr(error, attribute) for name, attribute in kind.members.items()}
    return Problem(
        kind.status,
        str(error) if kind.detail is None else kind.detail,
        code=kind.code,
        retry_after_seconds=getattr(error, "retry_after_seconds", kind.retry_after_seconds),
        **{name: value for name, value in values.items() if value is not None},
    )


def _validation_detail(error: ValidationException) -> str:
    """`field: what is wrong with it` for each field that Litestar found wrong."""
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
    """The answer to an exception of a controller, logged if the fault is not the client's."""
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
