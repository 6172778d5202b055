"""What the library needs of a store. One contract suite runs over every implementation.

All reads hide what has expired, except `load`, whose newest turn decides the next seq. Every
method raises `StoreUnavailable` when the store does not answer in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.models import Segment, Session, Turn

PAGE = 200
NO_RERUNS: Mapping[str, int] = {}


class LoadedSession(NamedTuple):
    """A session and its newest turns, newest first, without their receipts."""

    session: Session | None
    turns: list[Turn]


class Signal(NamedTuple):
    """What other processes tell the one that runs a turn."""

    cancel: bool
    watched: datetime | None


class PoisonedMessage(NamedTuple):
    """A message that no projection can take, why, and since when."""

    message_id: MessageId
    reason: str
    since: datetime


class TurnsStore(Protocol):
    """The log itself: one document per turn."""

    async def load(self, session_key: SessionKey, *, limit: int = PAGE) -> LoadedSession:
        """The session, and its newest turns back to its summary (one at least, at most `limit`),
        expired ones included."""
        ...

    async def append(self, turns: Sequence[Turn]) -> int:
        """Insert in order, durably; stop at the first whose id or idempotency is taken.

        Returns how many were inserted. Each gets `pending` set.
        """
        ...

    async def withdraw(self, turn: Turn) -> None:
        """Take back a turn that was appended just now, unless another has it by now."""
        ...

    async def save(self, turn: Turn) -> bool:
        """Replace the turn if it still runs under `turn.fencing_token`; False when it does not. A receipt
        that is there already stays, unless the turn brings one."""
        ...

    async def rerun(self, turn: Turn, *, was: Turn) -> bool:
        """Let an ended turn run again: replace it by `turn`, which is `running` and pending, if it
        is still `failed` or `interrupted` under `was.fencing_token`; False when it is not."""
        ...

    async def interrupt_running(self) -> int:
        """Mark every running turn interrupted (only where one process owns the store; else it
        does nothing, and leases decide)."""
        ...

    async def get(self, turn_id: TurnId, *, now: datetime) -> Turn | None:
        """The whole turn, receipt included."""
        ...

    async def get_many(self, ids: Sequence[TurnId], *, now: datetime) -> dict[TurnId, Turn]:
        """Those of `ids` that live, by id, without receipts."""
        ...

    async def forget_key(self, turn: Turn) -> None:
        """Its idempotency counts no longer: it becomes that of a turn without a key."""
        ...

    async def by_idempotency(self, user_key: UserKey, keys: Sequence[str]) -> dict[str, Turn]:
        """Turns of this user by their idempotency, expired ones included."""
        ...

    async def history(
        self, session_key: SessionKey, *, now: datetime, before: int | None, first: int, limit: int
    ) -> list[Turn]:
        """Turns with `first` ≤ seq < `before`, newest first."""
        ...

    async def range(self, session_key: SessionKey, *, after: int, limit: int) -> list[Turn]:
        """Turns whose last seq is greater than `after`, oldest first, expired ones included."""
        ...

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
        """This user's turns, newest first by the time they were said (`since` ≤ it < `until`);
        `before` = (created_at, id) of the last one seen."""
        ...

    async def overdue(self, *, before: datetime, limit: int = PAGE) -> list[Turn]:
        """Running turns whose lease ended before this moment, without receipts."""
        ...

    async def delete_expired(self, session_keys: Sequence[SessionKey], *, before: datetime) -> int:
        """Delete these sessions' segments and turns that expired before this moment; returns
        the number of turns."""
        ...


class SessionsStore(Protocol):
    """Session documents: settings, watermarks and the rolled summary."""

    async def get(self, key: SessionKey) -> Session | None: ...

    async def page(
        self, user_key: UserKey, *, before: tuple[datetime, str] | None, limit: int
    ) -> list[Session]:
        """By last activity, newest first; `before` = (updated_at, key) of the last one seen."""
        ...

    async def put(self, session: Session) -> bool:
        """Insert; False when it exists."""
        ...

    async def change(
        self, key: SessionKey, changes: Mapping[str, Any], *, unchanged: Session | None = None
    ) -> bool:
        """Set fields. With `unchanged` only if the session still has that one's summary version,
        is in the same life of its (`created_at`, `first_seq`) and is not being erased."""
        ...

    async def claim(self, key: SessionKey, *, worker: str, until: datetime, now: datetime) -> bool:
        """Take the session for `worker` until then, unless another worker has it still. False,
        too, for a session without a document. Claimed again, it is prolonged."""
        ...

    async def release(self, key: SessionKey, *, worker: str) -> None:
        """Give a claim back; harmless when it is another's by now."""
        ...

    async def delete(self, session_key: SessionKey, *, through: int | None = None) -> int:
        """Delete segments, turns, then the session document; returns the number of turns. With
        `through`, turns that begin after this seq stay, and the document too."""
        ...

    async def delete_if_empty(self, session_key: SessionKey) -> bool:
        """Delete the document and the segments of a session that holds no turn; False when it
        holds one."""
        ...

    async def with_expired_turns(self, *, before: datetime, limit: int = PAGE) -> list[SessionKey]:
        """Keys of sessions that hold turns which expired before this moment."""
        ...

    async def ended(self, *, before: datetime, limit: int = PAGE) -> list[Session]:
        """Sessions whose `expires_at` lies before this moment, and those marked `erasing`."""
        ...


class SegmentsStore(Protocol):
    """What each compaction took out of the log."""

    async def put(self, segment: Segment) -> None: ...

    async def of(self, session_key: SessionKey, *, now: datetime) -> list[Segment]: ...

    async def delete(self, session_key: SessionKey) -> None: ...


class WorkStore(Protocol):
    """What projections still have to do, and what they cannot take."""

    async def pending(
        self, *, user_key: UserKey | None = None, finished: bool = False, limit: int = PAGE
    ) -> list[SessionKey]:
        """Keys of sessions with turns that some projection has not seen, oldest first; with
        `finished`, of those alone in which such a turn has ended."""
        ...

    async def pending_since(self) -> datetime | None:
        """Since when the ended turn waits that has been pending for longest."""
        ...

    async def pending_reruns(
        self, session_key: SessionKey, *, through: int, limit: int
    ) -> list[Turn]:
        """Ended turns up to `through` that ran again and are pending, oldest first."""
        ...

    async def mark_projected(
        self, session_key: SessionKey, *, through: int, reruns: Mapping[str, int] = NO_RERUNS
    ) -> None:
        """Ended turns up to `through` are pending no longer; those that ran again only if
        `reruns` names their id with the attempt that they are at."""
        ...

    async def mark_poisoned(self, message_id: MessageId, *, reason: str, now: datetime) -> bool:
        """This message could not be projected; it is listed as long as its turn is there and is
        not run or projected anew as a whole. False when its turn is gone."""
        ...

    async def poisoned(self, *, limit: int = PAGE) -> list[PoisonedMessage]:
        """The messages that were set aside, the earliest first."""
        ...

    async def mark_all_pending(self) -> None:
        """Every living turn is pending again, every watermark of the index 0, none set aside."""
        ...

    async def mark_dense_pending(self, *, reset: bool) -> None:
        """Turns that lack dense vectors are pending again; with `reset`, all of them are, and
        none is set aside."""
        ...


class SignalsStore(Protocol):
    """What processes tell the one that runs a turn."""

    async def send(self, turn: Turn, *, cancel: bool = False, watched: datetime | None) -> None:
        """Tell the process that runs this attempt of the turn that it is to end, or until when
        somebody elsewhere reads along."""
        ...

    async def read(self, turns: Sequence[Turn]) -> dict[str, Signal]:
        """What was signalled to these attempts, by turn id."""
        ...


class Store(Protocol):
    """A store, in facets: a consumer takes the ones it uses, a cache or a cipher wraps one."""

    embedded: bool  # one process owns it: what that process did not write, nobody writes

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

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...
