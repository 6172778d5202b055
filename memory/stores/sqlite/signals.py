"""Signals in the embedded store: its turns run in this process, so there is nobody to tell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memory.ids import TurnId
from memory.models import Turn
from memory.stores.base import Signal


class SqliteSignals:
    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        pass  # its turns run in this process

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        return {}
