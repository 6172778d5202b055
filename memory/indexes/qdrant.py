"""The index on a Qdrant server, for any number of processes: one collection, over REST.

A write returns when the server has applied it and it is in its log. Nothing is tried twice here:
what fails is an `IndexUnavailable`, and the projector tries again. How the collection comes by the
vectors of a model: qdrant_collection.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from cachetools import TTLCache

from memory.embeddings import SparseVector
from memory.errors import IndexUnavailable
from memory.ids import MessageId, SessionKey, UserKey
from memory.indexes.base import KNOWN_USERS, MOST_SPEAKERS, Hit, Hits, Point, dense_name
from memory.indexes.features import FEATURES, Features
from memory.indexes.qdrant_collection import SPARSE, Collection

if TYPE_CHECKING:
    from qdrant_client import models

BATCH_POINTS = 256
# Another process may have given the user a new speaker.
SPEAKERS_SECONDS = 30.0


class QdrantIndex:
    """A `VectorIndex` in one collection of the server at `url`.

    No exchange takes longer than `timeout_seconds`. With `payload_text` every point also holds
    its passage, laid out so that langchain-qdrant can open the collection.
    """

    embedded = False

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        collection: str = "strata",
        timeout_seconds: float = 2.0,
        payload_text: bool = False,
    ) -> None:
        self._collection = Collection(
            collection,
            url=url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            payload_text=payload_text,
        )
        self._dense: str | None = None
        self._speakers: TTLCache[UserKey, frozenset[str]] = TTLCache(KNOWN_USERS, SPEAKERS_SECONDS)

    @property
    def keeps_text(self) -> bool:
        return self._collection.payload_text

    async def open(self) -> bool:
        return await self._collection.open()

    async def use_model(self, identity: str, dimensions: int) -> bool:
        fresh = await self._collection.use_model(identity, dimensions)
        self._dense = dense_name(identity, dimensions)
        return fresh

    async def upsert(self, points: Sequence[Point]) -> None:
        from qdrant_client import models

        for start in range(0, len(points), BATCH_POINTS):
            batch = points[start : start + BATCH_POINTS]
            structs = [
                models.PointStruct(
                    id=point.id, vector=self._vectors(point), payload=self._payload(point)
                )
                for point in batch
            ]
            async with self._collection.answering() as client:
                await client.upsert(self._collection.name, structs, wait=True)
            for point in batch:
                if point.payload["speakers"]:
                    self._speakers.pop(point.payload["user"], None)

    def _vectors(self, point: Point) -> dict[str, Any]:
        vectors: dict[str, Any] = {SPARSE: _sparse(point.sparse)}
        if point.dense is not None and self._dense:
            vectors[self._dense] = point.dense
        return vectors

    def _payload(self, point: Point) -> dict[str, Any]:
        payload: dict[str, Any] = {**point.payload}
        if self.keeps_text and point.document is not None:
            payload |= point.document
        return payload

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        await self._update([(i, {SPARSE: _sparse(vector)}) for i, vector in vectors])

    async def update_dense(self, vectors: Sequence[tuple[str, list[float]]]) -> None:
        if self._dense is None:
            raise IndexUnavailable("no embedding model is in use")
        await self._update([(i, {self._dense: vector}) for i, vector in vectors])

    async def _update(self, vectors: Sequence[tuple[str, dict[str, Any]]]) -> None:
        from qdrant_client import models

        for start in range(0, len(vectors), BATCH_POINTS):
            batch = dict(vectors[start : start + BATCH_POINTS])
            async with self._collection.answering() as client:
                # The server refuses a batch that names an unknown point.
                found = await client.retrieve(
                    self._collection.name, list(batch), with_payload=False, with_vectors=False
                )
            changed = [
                models.PointVectors(id=record.id, vector=batch[str(record.id)]) for record in found
            ]
            if changed:
                async with self._collection.answering() as client:
                    await client.update_vectors(self._collection.name, changed, wait=True)

    async def search(
        self,
        *,
        user: UserKey,
        sparse: SparseVector,
        dense: Sequence[float] | None,
        limit: int,
        now: datetime,
        session: SessionKey | None = None,
    ) -> Hits:
        from qdrant_client import models

        alive = models.Range(gt=now.timestamp())
        must = [_equals("user", user), models.FieldCondition(key="expires_at", range=alive)]
        if session is not None:
            must.append(_equals("session", session))
        queries: dict[str, Any] = {}
        if sparse.indices:
            queries[SPARSE] = _sparse(sparse)
        if dense is not None and self._dense:
            queries[self._dense] = list(dense)
        if not queries:
            return Hits([], [])
        requests = [
            models.QueryRequest(
                query=query,
                using=name,
                filter=models.Filter(must=list(must)),
                limit=limit,
                with_payload=FEATURES,
            )
            for name, query in queries.items()
        ]
        async with self._collection.answering() as client:
            answers = await client.query_batch_points(self._collection.name, requests)
            found = {
                name: [Hit(p.id, p.score, cast(Features, p.payload)) for p in answer.points]
                for name, answer in zip(queries, answers, strict=True)
            }
        return Hits(found.get(SPARSE, []), found.get(self._dense or "", []))

    async def speakers(self, user: UserKey) -> frozenset[str]:
        from qdrant_client import models

        if (known := self._speakers.get(user)) is not None:
            return known
        async with self._collection.answering() as client:
            answer = await client.facet(
                self._collection.name,
                "speakers",
                facet_filter=models.Filter(must=[_equals("user", user)]),
                limit=MOST_SPEAKERS,
                exact=True,
            )
        known = self._speakers[user] = frozenset(str(hit.value) for hit in answer.hits)
        return known

    async def delete_session(self, *, user: UserKey, session: SessionKey) -> None:
        await self._delete(_equals("user", user), _equals("session", session))
        self._speakers.pop(user, None)

    async def delete_messages(self, *, user: UserKey, messages: Sequence[MessageId]) -> None:
        from qdrant_client import models

        for start in range(0, len(messages), BATCH_POINTS):
            batch = messages[start : start + BATCH_POINTS]
            any_of = models.MatchAny(any=[str(message) for message in batch])
            await self._delete(
                _equals("user", user), models.FieldCondition(key="message", match=any_of)
            )
        self._speakers.pop(user, None)

    async def delete_expired(self, before: datetime) -> None:
        from qdrant_client import models

        gone = models.Range(lte=before.timestamp())
        await self._delete(models.FieldCondition(key="expires_at", range=gone))
        self._speakers.clear()

    async def _delete(self, *conditions: models.FieldCondition) -> None:
        from qdrant_client import models

        chosen = models.FilterSelector(filter=models.Filter(must=list(conditions)))
        async with self._collection.answering() as client:
            await client.delete(self._collection.name, chosen, wait=True)

    async def count(self, user: UserKey | None = None) -> int:
        """A user's exactly. All points as the server estimates them: counting them takes it the
        longer, the more there are, and health checks ask often."""
        from qdrant_client import models

        wanted = models.Filter(must=[_equals("user", user)]) if user else None
        async with self._collection.answering() as client:
            answer = await client.count(
                self._collection.name, count_filter=wanted, exact=user is not None
            )
        return answer.count

    async def flush(self) -> None:
        """Nothing to do: a write that has returned is in the server's log."""

    async def close(self) -> None:
        await self._collection.close()


def _equals(key: str, value: str) -> models.FieldCondition:
    from qdrant_client import models

    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _sparse(vector: SparseVector) -> models.SparseVector:
    from qdrant_client import models

    return models.SparseVector(indices=vector.indices, values=vector.values)
