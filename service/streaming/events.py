"""Server-sent events of a turn: how they are written, and where in them a reader is.

`<run>` is `<turn id>.<attempt>`; the ids are `<run>:a` (accepted), `<run>:c` (context),
`<run>:t<k>` (the first k code points of the answer) and `<run>:e` (the end).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from memory.errors import InvalidInput
from memory.models import Turn, TurnError

PING = b": ping\n\n"
PING_SECONDS = 15.0
_ID = re.compile(
    r"\A(?P<turn>[^\s]{1,200})\.(?P<attempt>[0-9]{1,9}):(?:(?P<stage>[ace])|t(?P<k>[0-9]{1,12}))\Z"
)
_LAST_EVENT_ID = "Last-Event-ID"
RESTARTED = TurnError("restarted", "the turn was begun again: read its events anew", True)
INTERRUPTED = TurnError("interrupted", "the answer broke off; what was streamed is kept", True)
ERASED = TurnError("erased", "the turn was erased while it ran", False)


def encode_event(name: str, id_: str, data: Any) -> bytes:
    """One server-sent event; JSON has no bare line breaks, so one data line is enough."""
    return b"event: %b\nid: %b\ndata: %b\n\n" % (
        name.encode(),
        id_.encode(),
        msgspec.json.encode(data),
    )


def run_of(turn: Turn) -> str:
    return f"{turn.id}.{turn.attempt}"


def accepted_event(turn: Turn) -> bytes:
    told = {"turn_id": turn.id, "session_id": turn.session_id, "seq": turn.seq}
    return encode_event("accepted", f"{run_of(turn)}:a", told)


def done_data(
    *,
    turn_id: str | None,
    message_id: str | None,
    finish_reason: str | None,
    usage: dict[str, int] | None,
    model: str | None,
) -> dict[str, Any]:
    """What `done` tells, live and from the store alike."""
    return {
        "turn_id": turn_id,
        "message_id": message_id,
        "finish_reason": finish_reason,
        "usage": usage,
        "model": model,
    }


def token_event(run: str, end: int, text: str) -> bytes:
    """The text up to code point `end`. Written for every token, so by hand."""
    return b'event: token\nid: %b:t%d\ndata: {"text":%b}\n\n' % (
        run.encode(),
        end,
        msgspec.json.encode(text),
    )


class Place(NamedTuple):
    """What a reader of an attempt has: how many of the events before the text, how many code
    points of it, and whether the end."""

    attempt: int | None = None
    heads: int = 0
    characters: int = 0
    ended: bool = False


BEGINNING = Place()


def place_of(last_event_id: str | None, turn_id: str) -> Place:
    """The place after the event with this id. Raises InvalidInput."""
    if not last_event_id:
        return BEGINNING
    found = _ID.match(last_event_id)
    if found is None or found["turn"] != turn_id:
        raise InvalidInput(_LAST_EVENT_ID, "must be the id of an event of this turn")
    attempt = int(found["attempt"])
    if found["k"] is not None:
        return Place(attempt, 2, int(found["k"]))
    return Place(attempt, {"a": 1, "c": 2, "e": 2}[found["stage"]], 0, found["stage"] == "e")
