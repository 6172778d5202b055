"""The events of a turn from the store: after its end, or while another process runs it.

They are the bytes that the process which ran it sent, but for how the text is divided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from memory import Strata, User
from memory.errors import NotFound, StoreUnavailable
from memory.models import Turn, now
from service.streaming.answer_buffer import PING_SECONDS, AnswerBuffer
from service.streaming.events import (
    ERASED,
    INTERRUPTED,
    RESTARTED,
    Cursor,
    Done,
    End,
    accepted_of,
    after,
    run_of,
)
from service.streaming.response import Feed

POLL_SECONDS = 0.2
# How often the process that runs the turn hears that it is read here, and for how long it may
# believe so.
WATCH_EVERY_SECONDS = 2.0
WATCHED = timedelta(seconds=6)


def stored_answer(turn: Turn) -> AnswerBuffer:
    """The answer as it stands in the store, which is another each time it is read."""
    answer = AnswerBuffer(accepted_of(turn))
    if turn.receipt is not None:
        answer.show(turn.receipt)
    if turn.assistant is not None and turn.assistant.content:
        answer.add(turn.assistant.content)
    if turn.status != "running":
        answer.finish(_end_of(turn))
    return answer


def _end_of(turn: Turn) -> End:
    if turn.error is not None:
        return turn.error
    if turn.status == "interrupted":
        return INTERRUPTED
    return Done(
        turn_id=turn.id,
        message_id=turn.assistant.id if turn.assistant else None,
        finish_reason=turn.finish_reason,
        usage=turn.usage,
        model=turn.model,
    )


def run_read(turn: Turn, cursor: Cursor) -> str:
    """The attempt whose events the reader gets: the one it has begun to read, if any."""
    return run_of(turn) if cursor.attempt is None else f"{turn.id}.{cursor.attempt}"


async def replay(
    strata: Strata, user: User, turn: Turn, cursor: Cursor, *, stopping: Callable[[], bool]
) -> Feed:
    """The events of `run_read` after `cursor`; live for as long as the turn runs elsewhere, or
    until this process is `stopping`. A reader of an attempt that is not the turn's last gets
    an error."""
    run = run_read(turn, cursor)
    yielded, watched = time.monotonic(), 0.0
    while True:
        if run_of(turn) != run:
            yield [RESTARTED]
            return
        if not cursor.ended:
            events, cursor = after(cursor, stored_answer(turn))
            if events or time.monotonic() - yielded >= PING_SECONDS:
                yielded = time.monotonic()
                yield events
        if cursor.ended:
            return
        if time.monotonic() - watched >= WATCH_EVERY_SECONDS:
            watched = time.monotonic()
            with suppress(StoreUnavailable):
                await strata.store.signals.send(turn, watched=now() + WATCHED)
        await asyncio.sleep(POLL_SECONDS)
        if stopping():
            return  # without an end: the client comes back to another worker
        with suppress(StoreUnavailable):  # it may come back; a client may leave meanwhile
            try:
                turn = await strata.history.turn(user, turn.id)
                turn = await strata.history.current_turn(user, turn)
            except NotFound:
                yield [ERASED]
                return
