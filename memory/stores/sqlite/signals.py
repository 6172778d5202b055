"""Signals in the embedded store: its turns run in this process, and no other one asks anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memory.ids import TurnId
from memory.models import Turn
from memory.stores.base import Signal


class SqliteSignals:
    """`SignalsStore` without signals."""

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        pass

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        return {}
