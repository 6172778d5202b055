"""A collection on a Qdrant server: how it is made, whose vectors it holds, how it fails.

It is opened before the embedding model is known, so its dense vector is added once the model is
loaded: servers from 1.18 on add named vectors to a collection that is in use. The vector's name is
made of the model (`dense_name`), so the collection itself says whose vectors it holds, and
processes agree without talking: adding and emptying twice is the same as once. The vectors of
another model are emptied, their name stays: a server (1.18.3) that had dropped the name lost every
point when it was killed, because its log still named it. `open` and `use_model` answer from what
the collection holds (no point at all, no point with such a vector): a process that dies before it
acts on the answer leaves the next one the same answer. The collection's metadata name the model,
for people.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from memory.errors import IndexUnavailable
from memory.indexes.base import dense_name

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

SPARSE = "sparse"
_METADATA = "strata"
_DOCUMENT = ["page_content", "metadata"]
# To take something from every point: a change of the model or of `payload_text`.
SWEEP_SECONDS = 120

log = structlog.get_logger("strata.index")


class Collection:
    """No exchange takes longer than `timeout_seconds`, except those that go through all points
    (`SWEEP_SECONDS`). With `payload_text` points hold text too."""

    def __init__(
        self,
        name: str,
        *,
        url: str,
        api_key: str | None,
        timeout_seconds: float,
        payload_text: bool,
    ) -> None:
        self.name = name
        self.payload_text = payload_text
        self._url = url
        self._api_key = api_key
        self._timeout = timeout_seconds
        self._client: AsyncQdrantClient | None = None

    def connect(self) -> AsyncQdrantClient:
        """A client of the server; it connects when it is first used."""
        from qdrant_client import AsyncQdrantClient

        if self._api_key and self._url.startswith("http://"):
            log.warning("index.key_in_the_clear")
        return AsyncQdrantClient(
            url=self._url,
            # As a header: about the parameter the client warns on its own, not in the log.
            headers={"api-key": self._api_key} if self._api_key else None,
            timeout=math.ceil(self._timeout),  # it takes whole seconds; `answering` is exact
            prefer_grpc=False,
            check_compatibility=False,
        )

    @asynccontextmanager
    async def answering(self, seconds: float | None = None) -> AsyncIterator[AsyncQdrantClient]:
        """The client, for one exchange within `seconds`. Every failure inside becomes
        IndexUnavailable."""
        if self._client is None:
            raise IndexUnavailable("Qdrant: not open")
        limit = seconds or self._timeout
        try:
            async with asyncio.timeout(limit):
                yield self._client
        except TimeoutError:
            raise IndexUnavailable(f"Qdrant: no answer within {limit:g} s") from None
        except Exception as error:  # httpx's, the client's, pydantic's; local mode's ValueError
            raise IndexUnavailable(f"Qdrant: {_described(error)}") from error

    async def open(self) -> bool:
        """True when it has no points, or their text is missing. May be called again."""
        await asyncio.to_thread(importlib.import_module, "qdrant_client")  # takes a second
        from qdrant_client import models

        if self._client is None:
            self._client = self.connect()
        async with self.answering() as client:
            if not await client.collection_exists(self.name):
                await self._create(client)
            info = await client.get_collection(self.name)
        for field, schema in _indexed(self.payload_text).items():
            if field not in (info.payload_schema or {}):
                async with self.answering() as client:
                    await client.create_payload_index(self.name, field, schema, wait=True)
        known = _recorded(info)
        texts = bool(known.get("payload_text"))
        if texts and not self.payload_text:
            async with self.answering(SWEEP_SECONDS) as client:
                await client.delete_payload(
                    self.name, _DOCUMENT, models.Filter(), wait=True, timeout=SWEEP_SECONDS
                )
        if texts != self.payload_text:
            await self._record(known | {"payload_text": self.payload_text})
        return (self.payload_text and not texts) or not await self._any(models.Filter())

    async def _create(self, client: AsyncQdrantClient) -> None:
        from qdrant_client import models

        sparse = models.SparseVectorParams(modifier=models.Modifier.IDF)
        try:
            await client.create_collection(
                self.name,
                vectors_config={},
                sparse_vectors_config={SPARSE: sparse},
                # No graph over everybody's points, one over those of each larger user.
                hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
                metadata={_METADATA: {"payload_text": self.payload_text}},
            )
        except Exception:
            if not await client.collection_exists(self.name):  # else another process was first
                raise

    async def use_model(self, identity: str, dimensions: int) -> bool:
        """True when no point has a vector of this model; those of others are dropped."""
        name = dense_name(identity, dimensions)
        async with self.answering() as client:
            info = await client.get_collection(self.name)
        present = _dense_names(info)
        for other in present - {name}:
            await self._empty(other)
        if name not in present:
            await self._add(name, dimensions)
        known = _recorded(info)
        model = {"vector": name, "model": identity, "dimensions": dimensions}
        if known != known | model:
            await self._record(known | model)
        return not await self._any(_having(name))

    async def _add(self, name: str, dimensions: int) -> None:
        from qdrant_client import models

        vector = models.DenseVectorConfig(size=dimensions, distance=models.Distance.COSINE)
        config = models.DenseVectorNameConfig(dense=vector)
        try:
            async with self.answering() as client:
                await client.create_vector_name(self.name, name, config, wait=True)
        except IndexUnavailable as error:
            if name not in await self._present():  # else another process was first
                raise IndexUnavailable(f"{error} (adding vectors needs Qdrant 1.18)") from error

    async def _empty(self, name: str) -> None:
        if not await self._any(_having(name)):
            return
        async with self.answering(SWEEP_SECONDS) as client:
            await client.delete_vectors(
                self.name, [name], _having(name), wait=True, timeout=SWEEP_SECONDS
            )

    async def _present(self) -> set[str]:
        async with self.answering() as client:
            return _dense_names(await client.get_collection(self.name))

    async def _record(self, known: dict[str, Any]) -> None:
        async with self.answering() as client:
            await client.update_collection(self.name, metadata={_METADATA: known})

    async def _any(self, wanted: models.Filter) -> bool:
        async with self.answering() as client:
            found, _ = await client.scroll(self.name, wanted, limit=1, with_payload=False)
        return bool(found)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _indexed(payload_text: bool) -> dict[str, Any]:
    from qdrant_client import models

    keyword, integer = models.KeywordIndexType.KEYWORD, models.IntegerIndexType.INTEGER
    tenant = models.KeywordIndexParams(type=keyword, is_tenant=True)
    # Graphs are for users alone: within one user's points no other is needed.
    filtered = models.KeywordIndexParams(type=keyword, enable_hnsw=False)
    fields: dict[str, Any] = {
        "user": tenant,
        "session": filtered,
        "message": filtered,
        "speakers": filtered,
        "expires_at": models.IntegerIndexParams(type=integer, enable_hnsw=False),
    }
    return fields | {"metadata.user": tenant} if payload_text else fields


def _dense_names(info: models.CollectionInfo) -> set[str]:
    vectors = info.config.params.vectors
    names = vectors if isinstance(vectors, dict) else {}
    return {name for name in names if name.startswith("dense-")}


def _having(vector: str) -> models.Filter:
    from qdrant_client import models

    return models.Filter(must=[models.HasVectorCondition(has_vector=vector)])


def _recorded(info: models.CollectionInfo) -> dict[str, Any]:
    known = (info.config.metadata or {}).get(_METADATA)
    return dict(known) if isinstance(known, dict) else {}


def _described(error: Exception) -> str:
    """What went wrong, in the server's own words if it has any; no address, no key."""
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, ResponseHandlingException):
        return type(error.source).__name__
    if not isinstance(error, UnexpectedResponse):
        return type(error).__name__
    try:
        reason = str(error.structured()["status"]["error"])[:200]
    except (ValueError, KeyError, TypeError):
        reason = error.reason_phrase
    return f"{error.status_code} {reason}"
