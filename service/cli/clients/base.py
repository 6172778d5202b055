"""What a command can ask of Strata, wherever the answer comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from memory import Incoming
from memory.errors import StrataError
from memory.models import Message

SESSIONS = 200  # a page


class RemoteError(StrataError):
    """The service answered with a problem."""


class Client(Protocol):
    """One user's memory. Methods raise StrataError."""

    def turn(self, session_id: str, message: str) -> AsyncIterator[tuple[str, Any]]:
        """The turn's events as (name, data)."""
        ...

    async def record(
        self, user: str, session_id: str, messages: Sequence[Incoming]
    ) -> tuple[int, int]:
        """(accepted, duplicates)"""
        ...

    async def sessions(self, cursor: Any) -> tuple[list[str], Any]:
        """The ids on a page, newest activity first; and the cursor of the next, or None."""
        ...

    async def messages(
        self, session_id: str, *, before: int | None, limit: int
    ) -> tuple[list[Message], bool]:
        """The newest page before `before` by `seq`, and whether there are older ones. A session
        that does not exist has none."""
        ...

    async def count(self, session_id: str) -> int:
        """How many numbers the session's messages span."""
        ...

    async def ready(self) -> dict[str, Any]:
        """The state of every part, as `/health/ready` gives it."""
        ...

    async def caught_up(self) -> None:
        """Return when all that was said can be found, where that is this process's work."""
        ...
