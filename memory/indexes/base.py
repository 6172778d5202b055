"""What recall and the projector need of a vector index. No search exists without a user.

An index is a projection: it may be stale, slow, empty or gone. It ranks; it never decides what a
user may see. Every method raises `IndexUnavailable` when the index does not answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypedDict

from memory.embeddings.sparse import SparseVector
from memory.ids import MessageId, SessionKey, UserKey


class Payload(TypedDict):
    """Features of a passage; no text, no name, no client's session id (`Document` has those)."""

    user: UserKey
    session: SessionKey
    message: MessageId
    role: str
    speakers: list[str]  # hashes of the speaker's name and of its words; empty without a name
    day: int  # proleptic ordinal of the day on which it was said
    tokens: int
    passage: int
    expires_at: int  # seconds since 1970, rounded up


class Features(TypedDict):
    """The part of a payload that ranking needs; by the rest a search only filters."""

    session: SessionKey
    message: MessageId
    role: str
    speakers: list[str]
    day: int
    tokens: int
    passage: int


FEATURES = list(Features.__annotations__)
MOST_SPEAKERS = 100
KNOWN_USERS = 1_000  # whose speakers an index keeps in memory


def dense_name(identity: str, dimensions: int) -> str:
    """The name of this model's vectors in an index: another model's never match it."""
    digest = hashlib.sha256(f"{identity}\0{dimensions}".encode()).hexdigest()[:12]
    return f"dense-{digest}"


def features(payload: Payload) -> Features:
    return Features(
        session=payload["session"],
        message=payload["message"],
        role=payload["role"],
        speakers=payload["speakers"],
        day=payload["day"],
        tokens=payload["tokens"],
        passage=payload["passage"],
    )


class Document(TypedDict):
    """A passage as langchain-qdrant lays it out. Only an index that was told to keeps it."""

    page_content: str
    metadata: dict[str, str]  # user (key), session_id, message_id, role, created_at, speaker


class Point(NamedTuple):
    id: str
    payload: Payload
    sparse: SparseVector
    dense: list[float] | None
    document: Document | None = None


class Hit(NamedTuple):
    id: Hashable
    score: float
    payload: Features


class Hits(NamedTuple):
    """Both rankings of one search, best first."""

    lexical: list[Hit]
    dense: list[Hit]


class VectorIndex(Protocol):
    embedded: bool  # its search runs on the event loop

    async def open(self) -> bool:
        """True when the index is new (or was emptied): everything has to be projected again."""
        ...

    async def use_model(self, identity: str, dimensions: int) -> bool:
        """Make room for this model's vectors. True when they are not there yet: the dense
        projection starts anew, the vectors of another model are dropped."""
        ...

    async def upsert(self, points: Sequence[Point]) -> None: ...

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        """Replace vectors by point id; unknown points are passed over."""
        ...

    async def update_dense(self, vectors: Sequence[tuple[str, list[float]]]) -> None:
        """As `update_sparse`."""
        ...

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
        """At most `limit` hits per key; `dense=None` searches by words alone."""
        ...

    async def speakers(self, user: UserKey) -> frozenset[str]:
        """The hashed speaker names in this user's points (the hundred most frequent)."""
        ...

    async def delete_session(self, *, user: UserKey, session: SessionKey) -> None: ...

    async def delete_messages(self, *, user: UserKey, messages: Sequence[MessageId]) -> None: ...

    async def delete_expired(self, before: datetime) -> None: ...

    async def count(self, user: UserKey | None = None) -> int: ...

    async def flush(self) -> None:
        """After this everything written so far survives a loss of power."""
        ...

    async def close(self) -> None: ...
