"""What is read from a file to be recorded, in portions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from memory.errors import InvalidInput
from memory.log.transitions import Incoming

BATCH = 200


class Batch(NamedTuple):
    """At most `BATCH` messages of one session in their order. `place` says where in the file they
    begin; `lines` has the number of each one's line, if it is a file of lines."""

    user: str
    session_id: str
    messages: list[Incoming]
    place: str
    lines: tuple[int, ...] = ()


def aware(moment: datetime | None) -> datetime | None:
    """UTC, cut to milliseconds; a moment without a zone is taken as UTC. Raises InvalidInput."""
    if moment is None:
        return None
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("time", "lies outside the years 1 to 9999 in UTC") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
