"""What the library needs of a store. One contract suite runs over every implementation.

Times are UTC datetimes in whole milliseconds, a `seq` numbers the messages of a session from 1 on.
Reads that take `now` hide what has expired by then, the others do not. Every method raises
`StoreUnavailable` when the store does not answer in time; after that it is open whether a write
was made. Lists are at most `limit` long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.models import LoadedSession, Segment, Session, Turn

PAGE = 200
NO_RERUNS: Mapping[TurnId, int] = {}


class Signal(NamedTuple):
    """What other processes ask of the process that runs a turn: to end it (`cancel`), or not to
    detach it before `watched`, since a client reads along elsewhere until then."""

    cancel: bool
    watched: datetime | None


class PoisonedMessage(NamedTuple):
    """A message that no projection can take, why (a word or the name of an exception), and since
    when."""

    message_id: MessageId
    reason: str
    since: datetime


class TurnsStore(Protocol):
    """The log itself: one document per turn."""

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        """The session and its turns from the newest back to the first one that its summary covers
        (at least one turn if there is any). Includes expired turns: the newest one decides the
        next seq."""

    async def append(self, turns: Sequence[Turn]) -> int:
        """Insert turns in order, durably and as pending, and return how many were inserted: the
        first one whose id or idempotency is taken and all after it are not."""

    async def withdraw(self, turn: Turn) -> None:
        """Delete a turn that was just appended, if it still runs under its fencing token."""

    async def save(self, turn: Turn) -> bool:
        """Replace the turn if it still runs under `turn.fencing_token`, else return False. A turn
        without a receipt keeps the one that is stored."""

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        """Replace an ended turn by `turn`, its next attempt: running, pending, not poisoned.
        False, and no change, if it is not `failed` or `interrupted` under `was.fencing_token`."""

    async def interrupt_running(self) -> int:
        """End all running turns and their answers as `interrupted`, and return how many. Does
        nothing in a store of several processes: there leases decide (see `overdue`)."""

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
        """The turn with its receipt, or None."""

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[TurnId, Turn]:
        """Those of these turns that are there, by id, without receipts."""

    async def forget_key(self, turn: Turn) -> None:
        """Give the turn the idempotency of a turn without a key, so that its key is free. Harmless
        if it has another one by now."""

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        """The user's turns with one of these values of `idempotency`, by it, without receipts."""

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        """Turns that have a message from `first` on and begin before `before`, newest first,
        without receipts."""

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        """Turns that end after message `after`, oldest first, without receipts."""

    async def of_user(
        self,
        user_key: UserKey,
        *,
        now: datetime,
        limit: int,
        session_key: SessionKey | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[datetime, str] | None = None,
    ) -> list[Turn]:
        """Turns of the user (of one session of theirs) with `since` ≤ `created_at` < `until`,
        newest first, without receipts. `before` is (created_at, id) of the last one of the page
        before."""

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        """Running turns whose lease ended before this moment, without receipts."""

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        """Delete the segments and turns of these sessions that expired at or before this moment;
        returns the number of turns."""


class SessionsStore(Protocol):
    """Session documents: settings, watermarks and the rolled summary."""

    async def get(self, key: SessionKey) -> Session | None: ...

    async def page(
        self, user_key: UserKey, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        """The user's sessions by last activity, newest first. `before` is (updated_at, key) of the
        last one of the page before."""

    async def put(self, session: Session) -> bool:
        """Insert the document; False, and no change, when there is one."""

    async def change(
        self, key: SessionKey, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        """Set fields of `Session` by name; False when there is no document.

        With `unchanged`, False and no change, too, if since that value was read another summary
        was stored (`summary.version`), the session began anew (`created_at`, `first_seq`), or it
        is being erased.
        """

    async def claim(self, key: SessionKey, *, worker: str, until: datetime, now: datetime) -> bool:
        """Give `worker` the session until then, or prolong its claim. False while another worker
        has it, and for a session without a document. In a store of one process there is no other
        worker."""

    async def release(self, key: SessionKey, *, worker: str) -> None:
        """End the claim of `worker`; harmless when another worker has the session by now."""

    async def delete(self, session_key: SessionKey, *, through: int | None = None) -> int:
        """Delete the session's segments, turns and, last, its document; returns the number of
        turns. With `through`, turns that begin after this seq and the document stay."""

    async def delete_if_empty(self, session_key: SessionKey) -> bool:
        """Delete the document and the segments of a session without turns; False when it has
        turns."""

    async def with_expired_turns(self, *, before: datetime, limit: int = PAGE) -> list[SessionKey]:
        """Keys of sessions with turns that expired at or before this moment."""

    async def ended(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        """Sessions whose `expires_at` is at or before this moment, and those marked `erasing`."""


class SegmentsStore(Protocol):
    """What each compaction took out of the log, by session and first seq."""

    async def put(self, segment: Segment) -> None:
        """Insert it, or replace the segment of its session with the same `first_seq`."""

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]:
        """All segments of the session, in their order."""

    async def delete(self, session_key: SessionKey) -> None:
        """Delete all segments of the session."""


class WorkStore(Protocol):
    """What projections still have to do (pending turns), and what they cannot take."""

    async def pending(
        self, *, user_key: UserKey | None = None, finished: bool = False, limit: int = PAGE
    ) -> list[SessionKey]:
        """Keys of sessions with pending turns, the longest pending first; with `finished`, only
        those in which a pending turn has ended."""

    async def pending_since(self) -> datetime | None:
        """Since when the longest pending of the ended turns is pending; None when there is none."""

    async def pending_reruns(
        self, session_key: SessionKey, *, through: int, limit: int
    ) -> list[Turn]:
        """Pending turns that end at or before message `through` and have ended a further attempt,
        oldest first, without receipts."""

    async def mark_projected(
        self, session_key: SessionKey, *, through: int, reruns: Mapping[TurnId, int] = NO_RERUNS
    ) -> None:
        """End the pending state of turns that have ended, at or before message `through`. A turn
        that ran again stays pending unless `reruns` has its id with its present attempt."""

    async def mark_poisoned(self, message_id: MessageId, *, reason: str, now: datetime) -> bool:
        """Note that a message cannot be projected, until its turn is deleted, runs again or is to
        be projected anew. False when its turn is gone."""

    async def poisoned(self, *, limit: int = PAGE) -> list[PoisonedMessage]:
        """The poisoned messages, the earliest first."""

    async def mark_all_pending(self) -> None:
        """Make every turn pending for an index that is empty: all watermarks of the index become
        0, no message is poisoned. Takes long in a large store, but lets other writes through."""

    async def mark_dense_pending(self, *, reset: bool) -> None:
        """Make the turns beyond their session's dense watermark pending, at a cost that only they
        decide. With `reset`, for an index that has lost all dense vectors: all these watermarks
        become 0 before, no message is poisoned, and it takes as long as `mark_all_pending`."""


class SignalsStore(Protocol):
    """What other processes ask of the one that runs a turn. A store of one process has none."""

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        """Ask the process that runs this attempt of the turn to end it, or not to detach it before
        `watched`. Nothing happens if this attempt does not run any more."""

    async def read(self, turns: Sequence[Turn]) -> dict[TurnId, Signal]:
        """The signals to these attempts, by turn id."""


class Store(Protocol):
    """A store in facets: a consumer takes those it uses, a cache wraps one of them."""

    embedded: bool  # one process owns it, and nothing is written by another one

    @property
    def turns(self) -> TurnsStore: ...

    @property
    def sessions(self) -> SessionsStore: ...

    @property
    def segments(self) -> SegmentsStore: ...

    @property
    def work(self) -> WorkStore: ...

    @property
    def signals(self) -> SignalsStore: ...

    async def open(self) -> None:
        """Connect, and bring what an earlier release has stored up to date. Raises ConfigError
        when the configuration or the data is of no use to this release."""

    async def close(self) -> None:
        """Release everything. A store is opened once."""

    async def ping(self) -> None:
        """Return when the store answers, and takes writes as far as is known."""
