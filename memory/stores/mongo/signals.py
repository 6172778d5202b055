"""What other processes ask of the one that runs a turn: two fields of the turn's document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memory.ids import TurnId
from memory.models import Turn
from memory.stores.base import Signal
from memory.stores.codec import Document
from memory.stores.mongo.collections import TURNS, at
from memory.stores.mongo.connection import Connection


class MongoSignals:
    """`SignalsStore` in MongoDB."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        signal: Document = {"cancelled": turn.attempt} if cancel else {}
        if watched is not None:
            signal["watched"] = watched
        where = {**at(turn.id), "attempt": turn.attempt, "status": "running"}
        await self._db.update(TURNS, where, {"$set": signal})

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        attempts = {turn.id: turn.attempt for turn in turns}
        where = {
            "_id": {"$in": list(attempts)},
            "user_key": {"$in": list({turn.user_key for turn in turns})},
        }
        found = await self._db.find(TURNS, where, show={"cancelled": 1, "watched": 1})
        return {
            one["_id"]: Signal(one.get("cancelled") == attempts[one["_id"]], one.get("watched"))
            for one in found
        }
