"""Pages of documents, each read as one or two ranges of an index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from memory.ids import SessionKey
from memory.stores.codec import Document
from memory.stores.mongo.collections import TURNS
from memory.stores.mongo.connection import BATCH, Connection


async def page(
    db: Connection,
    collection: str,
    where: Document,
    *,
    by: tuple[str, str],
    after: tuple[Any, Any] | None,
    limit: int,
    newest_first: bool = False,
    show: Mapping[str, Any] | None = None,
) -> list[Document]:
    """In the order of the two fields `by`, what comes `after` their values in the last document of
    the page before.

    First what shares the first of them, then the rest: each is one range of an index, while
    servers differ in what they make of the two joined by `$or`.
    """
    sort = [(name, -1 if newest_first else 1) for name in by]
    found: list[Document] = []
    if after is not None:
        beyond = "$lt" if newest_first else "$gt"
        (first, second), (major, minor) = by, after
        tied = {**where, first: major, second: {**where.get(second, {}), beyond: minor}}
        found = await db.find(collection, tied, sort=sort, limit=limit, show=show)
        where = {**where, first: {**where.get(first, {}), beyond: major}}
    if len(found) < limit:
        rest = limit - len(found)
        found += await db.find(collection, where, sort=sort, limit=rest, show=show)
    return found


async def session_keys(
    db: Connection, date: str, key: str, until: datetime, where: Document, limit: int
) -> list[SessionKey]:
    """Those in the field `key` of turns with a `date` up to `until`, the earliest first."""
    found: dict[SessionKey, None] = {}
    after: tuple[datetime, str] | None = None
    while len(found) < limit:
        documents = await page(
            db,
            TURNS,
            {**where, date: {"$lte": until}},
            by=(date, key),
            after=after,
            limit=BATCH,
            show={"_id": 0, date: 1, key: 1},
        )
        found |= {document[key]: None for document in documents}
        if len(documents) < BATCH:
            break
        after = documents[-1][date], documents[-1][key]  # leaps over the rest of a session's date
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
