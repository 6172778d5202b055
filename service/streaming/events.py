"""The events of a turn as values: what each holds, its id, and which come next for a reader.

`<run>` is `<turn id>.<attempt>`; the ids are `<run>:a` (accepted), `<run>:c` (context),
`<run>:t<k>` (the first k code points of the answer) and `<run>:e` (the end: `done` or `error`).
`after` alone decides what a reader gets, of an answer that is being made here and of one in the
store alike. Bytes are made last, by an EventEncoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from memory.errors import InvalidInput
from memory.models import Turn, TurnError
from memory.receipt import Receipt

_ID = re.compile(
    r"\A(?P<turn>[^\s]{1,200})\.(?P<attempt>[0-9]{1,9}):(?:(?P<stage>[ace])|t(?P<k>[0-9]{1,12}))\Z"
)
RESTARTED = TurnError("restarted", "the turn was begun again: read its events anew", True)
INTERRUPTED = TurnError("interrupted", "the answer broke off; what was streamed is kept", True)
ERASED = TurnError("erased", "the turn was erased while it ran", False)


class Accepted(msgspec.Struct, frozen=True):
    """The question is durable."""

    turn_id: str
    session_id: str
    seq: int


class Token(NamedTuple):
    """Text of the answer up to its code point `end`."""

    end: int
    text: str


class Done(msgspec.Struct, frozen=True):
    """The last event of an answer that was not refused. Ids are None where nothing is stored."""

    turn_id: str | None
    message_id: str | None
    finish_reason: str | None
    usage: dict[str, int] | None
    model: str | None


End = Done | TurnError
Event = Accepted | Receipt | Token | End
NAMES: dict[type[Event], str] = {
    Accepted: "accepted",
    Receipt: "context",
    Token: "token",
    Done: "done",
    TurnError: "error",
}


def run_of(turn: Turn) -> str:
    return f"{turn.id}.{turn.attempt}"


def accepted_of(turn: Turn) -> Accepted:
    return Accepted(turn.id, turn.session_id, turn.seq)


class Cursor(NamedTuple):
    """What a reader of one attempt has: of the events before the text (1 = accepted, 2 = both),
    how many code points of the text, and whether the end."""

    attempt: int | None = None
    heads: int = 0
    characters: int = 0
    ended: bool = False


BEGINNING = Cursor()


def cursor_of(last_event_id: str | None, turn_id: str) -> Cursor:
    """The cursor after the event with this id, which must be one of this turn's: else
    InvalidInput."""
    if not last_event_id:
        return BEGINNING
    found = _ID.match(last_event_id)
    if found is None or found["turn"] != turn_id:
        raise InvalidInput("Last-Event-ID", "must be the id of an event of this turn")
    attempt = int(found["attempt"])
    if found["k"] is not None:
        return Cursor(attempt, 2, int(found["k"]))
    return Cursor(attempt, {"a": 1, "c": 2, "e": 2}[found["stage"]], 0, found["stage"] == "e")


class Snapshot(Protocol):
    """One attempt at an answer as far as it is known now. `accepted` is None for a stateless one;
    `length` is in code points; `end` is None while it runs, and for one that was cut off."""

    accepted: Accepted | None
    receipt: Receipt | None
    length: int
    ended: bool
    end: End | None

    def tokens(self, at: int) -> Sequence[Token]:
        """The next of its text from code point `at` < `length` on, one at least."""
        ...


def after(cursor: Cursor, answer: Snapshot) -> tuple[list[Event], Cursor]:
    """What a reader at `cursor` gets next, and where it is then. Call again: a reader far behind
    gets the text in several parts, and the end after the last of them."""
    attempt, heads, at, ended = cursor
    events: list[Event] = []
    if heads < 2:
        if heads == 0:
            if answer.accepted is not None:
                events.append(answer.accepted)
            heads = 1
        if (receipt := answer.receipt) is not None:
            events.append(receipt)
        # A turn that broke off early never had one.
        heads = 2 if receipt is not None or answer.ended else 1
    if at < answer.length and heads == 2:
        events += answer.tokens(at)
        at = events[-1].end  # type: ignore[union-attr]  # they are all tokens
    if answer.ended and at >= answer.length and not ended:
        if at > answer.length:  # a crash lost text that this reader has
            events.append(INTERRUPTED)
        elif answer.end is not None:
            events.append(answer.end)
        ended = True
    return events, Cursor(attempt, heads, at, ended)


class EventEncoder(Protocol):
    """Makes the bytes of one response."""

    media_type: str
    ping: bytes  # what a client passes over; it keeps the connection open

    def encode(self, events: Sequence[Event]) -> bytes: ...


class SseEncoder:
    """Server-sent events with the ids of one attempt."""

    media_type = "text/event-stream"
    ping = b": ping\n\n"

    def __init__(self, run: str) -> None:
        self._run = run.encode()

    def encode(self, events: Sequence[Event]) -> bytes:
        return self._one(events[0]) if len(events) == 1 else b"".join(map(self._one, events))

    def _one(self, event: Event) -> bytes:
        """JSON has no bare line breaks, so one data line is enough."""
        if type(event) is Token:
            return b'event: token\nid: %b:t%d\ndata: {"text":%b}\n\n' % (
                self._run,
                event.end,
                msgspec.json.encode(event.text),
            )
        name = NAMES[type(event)]
        stage = name[0] if name in ("accepted", "context") else "e"
        return b"event: %b\nid: %b:%b\ndata: %b\n\n" % (
            name.encode(),
            self._run,
            stage.encode(),
            msgspec.json.encode(event),
        )


def builtins_of(event: Event) -> tuple[str, Any]:
    """The name of an event and its data as plain dicts and lists, as JSON would have them."""
    data = {"text": event.text} if isinstance(event, Token) else msgspec.to_builtins(event)
    return NAMES[type(event)], data
