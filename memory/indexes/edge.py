"""The embedded index: Qdrant Edge, the server's own engine in this process.

One folder, one process (Edge locks it). Searches run on the event loop: they take about a
millisecond and hold the GIL anyway, so that a thread would only add its own cost. Writes and
`flush` run on one thread. No HNSW graph: a filtered scan is exact, and fast enough for one
machine's users.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

import qdrant_edge as edge
from cachetools import LRUCache

from memory.embeddings import SparseVector
from memory.errors import IndexUnavailable
from memory.ids import MessageId, SessionKey, UserKey
from memory.indexes.base import KNOWN_USERS, MOST_SPEAKERS, Hit, Hits, Point, dense_name
from memory.indexes.features import FEATURES, Features, features

T = TypeVar("T")

# How many points' features are kept in memory, at about 0.7 kB a point. A plain dict: an LRU cache
# of Python code takes three times as long for the few hundred look-ups of a query, and the thread
# that writes points could not share it with the event loop.
KNOWN_POINTS = 20_000
_FORGOTTEN_SHARE = 0.25
_SPARSE = "sparse"
# Above so many points of a user the inverted index is quicker than a look at each of them
# (measured at 3,000 to 100,000 points in all; Edge's own threshold is 5,000).
_FULL_SCAN_POINTS = 1_000
_INDEXED: dict[str, Any] = {
    "user": edge.KeywordIndexParams(is_tenant=True),
    "session": edge.PayloadSchemaType.Keyword,
    "message": edge.PayloadSchemaType.Keyword,
    "speakers": edge.PayloadSchemaType.Keyword,
    "expires_at": edge.PayloadSchemaType.Integer,
}


class EdgeIndex:
    """A `VectorIndex` in the folder `path`, which it creates."""

    embedded = True
    keeps_text = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model_file = path.parent / f"{path.name}.model.json"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edge")
        self._shard: Any = None
        self._dense: str | None = None
        self._known: dict[int, Features] = {}
        self._speakers: LRUCache[UserKey, frozenset[str]] = LRUCache(KNOWN_USERS)

    async def open(self) -> bool:
        return await self._on_thread(self._open)

    def _open(self) -> bool:
        if (self._path / "edge_config.json").exists():
            self._shard = edge.EdgeShard.load(str(self._path))
            return bool(self._shard.info().points_count == 0)
        self._path.mkdir(parents=True, exist_ok=True)
        self._model_file.unlink(missing_ok=True)
        config = edge.EdgeConfig(
            sparse_vectors={
                _SPARSE: edge.EdgeSparseVectorParams(
                    full_scan_threshold=_FULL_SCAN_POINTS, modifier=edge.Modifier.Idf
                )
            },
            hnsw_config=edge.HnswIndexConfig(
                m=0, ef_construct=16, full_scan_threshold=10_000, payload_m=0
            ),
        )
        self._shard = edge.EdgeShard.create(str(self._path), config)
        for field, schema in _INDEXED.items():
            self._update(edge.UpdateOperation.create_field_index(field, schema))
        return True

    async def use_model(self, identity: str, dimensions: int) -> bool:
        return await self._on_thread(self._use_model, identity, dimensions)

    def _use_model(self, identity: str, dimensions: int) -> bool:
        name = dense_name(identity, dimensions)
        known = json.loads(self._model_file.read_text()) if self._model_file.exists() else {}
        if known.get("vector") == name:
            self._dense = name
            return False
        if known:
            self._update(edge.UpdateOperation.delete_vector_name(known["vector"]))
        self._update(
            edge.UpdateOperation.create_dense_vector(name, dimensions, edge.Distance.Cosine)
        )
        self._shard.flush()
        self._model_file.write_text(
            json.dumps({"vector": name, "model": identity, "dimensions": dimensions})
        )
        self._dense = name
        return True

    async def upsert(self, points: Sequence[Point]) -> None:
        await self._on_thread(self._upsert, points)
        for point in points:
            if point.payload["speakers"]:
                self._speakers.pop(point.payload["user"], None)

    def _upsert(self, points: Sequence[Point]) -> None:
        made = [_edge_point(point, self._dense) for point in points]
        self._update(edge.UpdateOperation.upsert_points(made))
        for point in points:
            self._known[UUID(point.id).int] = features(point.payload)

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        await self._on_thread(
            self._update_vectors, [(i, {_SPARSE: edge.SparseVector(*v)}) for i, v in vectors]
        )

    async def update_dense(self, vectors: Sequence[tuple[str, list[float]]]) -> None:
        if self._dense is None:
            raise IndexUnavailable("no embedding model is in use")
        await self._on_thread(self._update_vectors, [(i, {self._dense: v}) for i, v in vectors])

    def _update_vectors(self, vectors: Sequence[tuple[str, Any]]) -> None:
        # Edge refuses a batch that names an unknown point.
        known = {str(r.id) for r in self._shard.retrieve([i for i, _ in vectors], False, False)}
        changed = [edge.PointVectors(i, v) for i, v in vectors if i in known]
        if changed:
            self._update(edge.UpdateOperation.update_vectors(changed))

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
        must: list[Any] = [
            _equals("user", user),
            edge.FieldCondition(key="expires_at", range=edge.RangeFloat(gt=now.timestamp())),
        ]
        if session is not None:
            must.append(_equals("session", session))
        wanted = edge.Filter(must=must)
        queries: list[tuple[str, Any]] = []
        if sparse.indices:
            queries.append((_SPARSE, edge.SparseVector(*sparse)))
        if dense is not None and self._dense:
            queries.append((self._dense, list(dense)))
        if not queries:
            return Hits([], [])
        batch = edge.QueryBatchRequest(
            [
                edge.QueryRequest(
                    limit=limit, query=edge.Query.Nearest(vector, using=name), filter=wanted
                )
                for name, vector in queries
            ]
        )
        results = _guarded(self._shard.query_batch, batch)
        ranked = [[(point.id.int, point.score) for point in points] for points in results]
        known = self._features(number for points in ranked for number, _ in points)
        found = {
            name: [Hit(i, score, known[i]) for i, score in points if i in known]
            for (name, _), points in zip(queries, ranked, strict=True)
        }
        return Hits(found.get(_SPARSE, []), found.get(self._dense or "", []))

    def _features(self, numbers: Iterable[int]) -> dict[int, Features]:
        """The features of these points, and of others. Reading them takes longer than the search
        itself, so those of the last points are kept, by the number of their id (which hashes ten
        times as fast as the id)."""
        known = self._known
        if len(known) > KNOWN_POINTS:
            for number in list(islice(known, int(KNOWN_POINTS * _FORGOTTEN_SHARE))):
                known.pop(number, None)
        if missing := [UUID(int=number) for number in {n for n in numbers if n not in known}]:
            for record in _guarded(self._shard.retrieve, missing, FEATURES, False):
                known[record.id.int] = cast(Features, record.payload)
        return known

    async def speakers(self, user: UserKey) -> frozenset[str]:
        known = self._speakers.get(user)
        if known is None:
            known = self._speakers[user] = self._count_speakers(user)
        return known

    def _count_speakers(self, user: UserKey) -> frozenset[str]:
        wanted = edge.Filter(must=[_equals("user", user)])
        request = edge.FacetRequest("speakers", limit=MOST_SPEAKERS, filter=wanted)
        return frozenset(hit.value for hit in _guarded(self._shard.facet, request).hits)

    async def delete_session(self, *, user: UserKey, session: SessionKey) -> None:
        await self._delete(_equals("user", user), _equals("session", session))
        self._speakers.pop(user, None)

    async def delete_messages(self, *, user: UserKey, messages: Sequence[MessageId]) -> None:
        if messages:
            any_of = edge.MatchAny([str(message) for message in messages])
            await self._delete(
                _equals("user", user), edge.FieldCondition(key="message", match=any_of)
            )
        self._speakers.pop(user, None)

    async def delete_expired(self, before: datetime) -> None:
        gone = edge.RangeFloat(lte=before.timestamp())
        await self._delete(edge.FieldCondition(key="expires_at", range=gone))
        self._speakers.clear()
        self._known.clear()

    async def _delete(self, *conditions: Any) -> None:
        operation = edge.UpdateOperation.delete_points_by_filter(edge.Filter(must=list(conditions)))
        await self._on_thread(self._update, operation)

    async def count(self, user: UserKey | None = None) -> int:
        wanted = edge.Filter(must=[_equals("user", user)]) if user else None
        request = edge.CountRequest(filter=wanted, exact=True)
        return int(_guarded(self._shard.count, request))

    async def flush(self) -> None:
        await self._on_thread(lambda: self._shard.flush())

    async def close(self) -> None:
        if self._shard is not None:
            await self._on_thread(self._shard.close)
            self._shard = None
        self._thread.shutdown(wait=True)

    def _update(self, operation: Any) -> None:
        self._shard.update(operation)

    async def _on_thread(self, work: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: _guarded(work, *args))


def _edge_point(point: Point, dense: str | None) -> Any:
    vectors: dict[str, Any] = {_SPARSE: edge.SparseVector(*point.sparse)}
    if point.dense is not None and dense:
        vectors[dense] = point.dense
    return edge.Point(point.id, vectors, cast(dict[str, Any], point.payload))


def _equals(key: str, value: str) -> Any:
    return edge.FieldCondition(key=key, match=edge.MatchValue(value))


def _guarded(work: Callable[..., T], *args: Any) -> T:
    try:
        return work(*args)
    except Exception as error:  # Edge raises bare Exception for everything
        raise IndexUnavailable(f"Qdrant Edge: {error}") from error
