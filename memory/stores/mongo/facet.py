"""What the facets of the MongoDB store share: reads of one or two ranges of an index each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from memory.ids import SessionKey
from memory.models import Turn
from memory.stores.codec import Codec, Document
from memory.stores.mongo.collections import TURNS
from memory.stores.mongo.connection import BATCH, Connection, Order

BARE = {"receipt": 0}  # a turn without its receipt


class Facet:
    """What a facet works with. The server deletes documents so long after they expired."""

    def __init__(self, db: Connection, codec: Codec, purge_grace_seconds: float) -> None:
        self._db = db
        self._codec = codec
        self._grace = purge_grace_seconds

    async def _turns(self, where: Document, *, limit: int, sort: Order = ()) -> list[Turn]:
        found = await self._db.find(TURNS, where, sort=sort, limit=limit, show=BARE)
        return [self._codec.turn_from_document(document) for document in found]

    async def _page(
        self,
        collection: str,
        where: Document,
        *,
        by: tuple[str, str],
        after: tuple[Any, Any] | None,
        limit: int,
        show: Mapping[str, Any] | None = None,
        newest_first: bool = True,
    ) -> list[Document]:
        """In the order of the two fields `by`, what comes `after` their values in the last document
        of the page before.

        First what shares the first of them, then the rest: each is one range of an index, while
        servers differ in what they make of the two joined by `$or`.
        """
        sort = [(name, -1 if newest_first else 1) for name in by]
        found: list[Document] = []
        if after is not None:
            beyond = "$lt" if newest_first else "$gt"
            (first, second), (major, minor) = by, after
            tied = {**where, first: major, second: {**where.get(second, {}), beyond: minor}}
            found = await self._db.find(collection, tied, sort=sort, limit=limit, show=show)
            where = {**where, first: {**where.get(first, {}), beyond: major}}
        if rest := limit - len(found):
            found += await self._db.find(collection, where, sort=sort, limit=rest, show=show)
        return found

    async def _session_keys(
        self, date: str, key: str, until: datetime, where: Document, limit: int
    ) -> list[SessionKey]:
        """Those in the field `key` of turns with a `date` up to `until`, the earliest first."""
        found: dict[SessionKey, None] = {}
        after: tuple[datetime, str] | None = None
        while len(found) < limit:
            documents = await self._page(
                TURNS,
                {**where, date: {"$lte": until}},
                by=(date, key),
                after=after,
                limit=BATCH,
                show={"_id": 0, date: 1, key: 1},
                newest_first=False,
            )
            found |= {document[key]: None for document in documents}
            if len(documents) < BATCH:
                break
            after = documents[-1][date], documents[-1][key]  # leaps over the rest of a date
        return list(found)[:limit]


async def all_pages(
    db: Connection, collection: str, by: str, show: Mapping[str, Any]
) -> AsyncIterator[list[Document]]:
    """Every document that has the text field `by` (which an index holds), in its order."""
    after = ""
    while found := await db.find(
        collection, {by: {"$gt": after}}, sort=((by, 1),), limit=BATCH, show={by: 1, **show}
    ):
        yield found
        after = found[-1][by]
