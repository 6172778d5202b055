"""Logs: JSON lines of an event name and values. No message text, no key, no user's plain name."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import structlog

MAX_FRAMES = 12
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def _where_it_failed(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """An exception as its type and its places in the code. Neither its text nor any variable is
    logged: both can hold what a user said."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
        event["exception"] = type(error).__qualname__
        event["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def configure_logging(level: str) -> None:
    """Write structlog and the standard library's loggers to stderr as JSON."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _where_it_failed,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        # Writes each line at once, so that the lines of two threads do not mix.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS[level])
    # Their debug and info lines hold request bodies and addresses with queries.
    for name in ("httpx", "httpx2", "openai", "httpcore", "litestar", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
