"""What recall and the projector need of a vector index. No search exists without a user.

An index is a projection: it may be stale, slow, empty or gone. It ranks; it never decides what a
user may see. Every method raises `IndexUnavailable` when the index does not answer, or refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypedDict

from memory.embeddings import SparseVector
from memory.ids import MessageId, SessionKey, UserKey
from memory.indexes.features import Features, Payload

MOST_SPEAKERS = 100
KNOWN_USERS = 1_000  # whose speakers an index keeps in memory


def dense_name(identity: str, dimensions: int) -> str:
    """The name of this model's vectors in an index: another model's never match it."""
    digest = hashlib.sha256(f"{identity}\0{dimensions}".encode()).hexdigest()[:12]
    return f"dense-{digest}"


class Document(TypedDict):
    """A passage as langchain-qdrant lays it out, for an index that `keeps_text`."""

    page_content: str
    metadata: dict[str, str]  # user (key), session_id, message_id, role, created_at, speaker


class Point(NamedTuple):
    """One passage. `id` is a UUID made of message and passage: writing it again replaces it."""

    id: str
    payload: Payload
    sparse: SparseVector
    dense: list[float] | None
    document: Document | None = None


class Hit(NamedTuple):
    """A point that a search found. Its `id` equals that of the same point in the other ranking.

    `score` by words: BM25, from 0 without an upper bound, so that it compares only within its
    ranking. `score` by meaning: cosine similarity, from -1 to 1.
    """

    id: Hashable
    score: float
    payload: Features


class Hits(NamedTuple):
    """Both rankings of one search, best first."""

    lexical: list[Hit]
    dense: list[Hit]


class VectorIndex(Protocol):
    """Writes may be repeated; they are found once the call has returned."""

    embedded: bool  # one process owns it; searches run on its event loop

    @property
    def keeps_text(self) -> bool:
        """Whether points are stored with their `Document`; else it need not be made."""
        ...

    async def open(self) -> bool:
        """True when the index is new (or was emptied): everything has to be projected again. May
        be called again after it has failed."""
        ...

    async def use_model(self, identity: str, dimensions: int) -> bool:
        """Make room for this model's vectors and drop another model's. True when none of them are
        there yet: then the dense projection starts anew."""
        ...

    async def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace points, by id. A dense vector is dropped as long as no model is in
        use."""
        ...

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        """Replace vectors by point id; unknown points are passed over."""
        ...

    async def update_dense(self, vectors: Sequence[tuple[str, list[float]]]) -> None:
        """As `update_sparse`. Raises IndexUnavailable, too, as long as no model is in use."""
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
        """The user's points that have not expired by `now`, at most `limit` in each ranking.
        `dense=None` searches by words alone, an empty `sparse` by meaning alone."""
        ...

    async def speakers(self, user: UserKey) -> frozenset[str]:
        """The hashed speaker names in this user's points (the hundred most frequent). What
        another process wrote may be missing for half a minute."""
        ...

    async def delete_session(self, *, user: UserKey, session: SessionKey) -> None:
        """Delete the points of one session of the user; harmless when there are none."""
        ...

    async def delete_messages(self, *, user: UserKey, messages: Sequence[MessageId]) -> None:
        """Delete every passage of these messages, as far as they are the user's."""
        ...

    async def delete_expired(self, before: datetime) -> None:
        """Delete every user's points whose `expires_at` is not later than this moment."""
        ...

    async def count(self, user: UserKey | None = None) -> int:
        """How many points this user has, exactly; without a user, about how many there are."""
        ...

    async def flush(self) -> None:
        """After this everything written so far survives a loss of power."""
        ...

    async def close(self) -> None:
        """Release folder or connection; harmless when repeated."""
        ...
