"""The events of a turn as the store tells them: after its end, or while another process runs it.

They are the same bytes as those of the process that ran it, but for how the text is divided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from memory import User
from memory.errors import NotFound, StoreUnavailable
from memory.models import Turn, TurnError, now
from service.services import Services
from service.streaming.events import (
    ERASED,
    INTERRUPTED,
    PING,
    PING_SECONDS,
    RESTARTED,
    Place,
    accepted_event,
    done_data,
    encode_event,
    run_of,
    token_event,
)

POLL_SECONDS = 0.2
# That somebody reads along is told so often, and holds for so long.
WATCH_EVERY_SECONDS = 2.0
WATCHED = timedelta(seconds=6)


def end_of(turn: Turn) -> tuple[str, Any]:
    """The name and the data of the last event of a turn that has ended."""
    if turn.status == "interrupted":
        return "error", turn.error or INTERRUPTED
    if turn.error is not None:
        return "error", turn.error
    return "done", done_data(
        turn_id=turn.id,
        message_id=turn.assistant.id if turn.assistant else None,
        finish_reason=turn.finish_reason,
        usage=turn.usage,
        model=turn.model,
    )


async def replay(services: Services, user: User, turn: Turn, place: Place) -> AsyncIterator[bytes]:
    """The events after `place`, live for as long as the turn runs elsewhere."""
    run, heads, at = run_of(turn), place.heads, place.characters
    if place.attempt is not None and place.attempt != turn.attempt:
        yield _error(f"{turn.id}.{place.attempt}", RESTARTED)
        return
    if place.ended:
        return
    told, watched = time.monotonic(), 0.0
    while True:
        news, heads, at = _news(turn, heads, at)
        if turn.status != "running":
            length = len(turn.assistant.content) if turn.assistant else 0
            last = ("error", INTERRUPTED) if length < at else end_of(turn)
            yield news + encode_event(last[0], f"{run}:e", last[1])
            return
        if news or time.monotonic() - told >= PING_SECONDS:
            told = time.monotonic()
            yield news or PING
        if time.monotonic() - watched >= WATCH_EVERY_SECONDS:
            watched = time.monotonic()
            with suppress(StoreUnavailable):
                await services.strata.store.signals.send(turn, watched=now() + WATCHED)
        await asyncio.sleep(POLL_SECONDS)
        if services.answers.draining and not services.answers:
            return  # no end: the client comes back to another worker
        try:
            history = services.strata.history
            turn = await history.current_turn(user, await history.turn(user, turn.id))
        except NotFound:
            yield _error(run, ERASED)
            return
        except StoreUnavailable:
            continue  # it may come back; a client that does not want to wait leaves
        if run_of(turn) != run:
            yield _error(run, RESTARTED)
            return


def _news(turn: Turn, heads: int, at: int) -> tuple[bytes, int, int]:
    """What the store has beyond this place, and the place after it."""
    parts, run, ended = [], run_of(turn), turn.status != "running"
    if heads == 0:
        parts.append(accepted_event(turn))
        heads = 1
    if heads == 1 and (turn.receipt is not None or ended):
        if turn.receipt is not None:  # a turn that broke off early never had one
            parts.append(encode_event("context", f"{run}:c", turn.receipt))
        heads = 2
    text = turn.assistant.content if turn.assistant else ""
    if heads == 2 and len(text) > at:
        parts.append(token_event(run, len(text), text[at:]))
        at = len(text)
    return b"".join(parts), heads, at


def _error(run: str, error: TurnError) -> bytes:
    return encode_event("error", f"{run}:e", error)
