"""The values that flow between the layers. All frozen; all know how to become JSON.

Ids are derivable, never looked up: user key = hash of tenant and user, session key =
`<user key>.<hash of the client's session id>`, turn id = `<session key>:<seq, 10 digits>`,
message id = `<turn id>.u` or `.a`.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec

from memory.ids import MessageId, SessionKey, TurnId, UserKey
from memory.receipt import Receipt

Role = Literal["user", "assistant"]
MessageStatus = Literal["running", "done", "partial", "interrupted", "failed", "forgotten"]
TurnStatus = Literal["running", "done", "partial", "interrupted", "failed"]
RecallScope = Literal["user", "session", "none"]

NEVER = datetime(9999, 1, 1, tzinfo=UTC)
TITLE_CHARACTERS = 60


def now() -> datetime:
    """The current time in UTC, cut to milliseconds (what every store can hold)."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def expiry_of(moment: datetime, ttl: float | str) -> datetime:
    """`moment` + `ttl` seconds; NEVER for "session" and for what lies beyond the calendar."""
    if isinstance(ttl, str) or math.isinf(ttl):
        return NEVER
    try:
        return min(NEVER, moment + timedelta(seconds=ttl))
    except OverflowError:
        return NEVER


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def user_key(tenant: str, user: str) -> UserKey:
    """32 hex digits that stand for one user of one tenant in every store."""
    return UserKey(_digest(f"{len(tenant)}\0{tenant}\0{user}"))  # no other pair reads the same


def session_key(user: UserKey, session_id: str) -> SessionKey:
    return SessionKey(f"{user}.{_digest(session_id)}")


def turn_id(session: SessionKey, seq: int) -> TurnId:
    return TurnId(f"{session}:{seq:010d}")


def keyless(turn: TurnId) -> str:
    """What stands in the unique index for a turn without a client's key."""
    return f"t{turn}"


def turn_of(message_id: MessageId) -> TurnId:
    """The id of the document that holds this message."""
    return TurnId(message_id.rpartition(".")[0])


class User(msgspec.Struct, frozen=True):
    """Who is speaking. Comes from a credential, never from a body or a path."""

    tenant: str
    name: str
    key: UserKey = UserKey("")  # derived once: it is asked for many times a turn

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "key", user_key(self.tenant, self.name))


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One utterance. `tokens` counts `content` alone; times are UTC."""

    id: MessageId
    seq: int
    role: Role
    content: str
    status: MessageStatus
    tokens: int
    created_at: datetime
    recorded_at: datetime
    client_id: str | None = None
    speaker: str | None = None
    turn_id: TurnId | None = None


class TurnError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a turn has no whole answer: a code of the contract, a text without inner details, and
    whether the same request may succeed later (not before `retry_after_s` seconds)."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One document of the log: a request with its answer, or one recorded message.

    Every update names `fencing_token`, and matches nothing once another writer has taken the turn
    over; a running turn is its session's lease until `lease_until`. Stores keep the two under their
    first names, `token` and `until`.
    """

    id: TurnId
    user_key: UserKey
    session_key: SessionKey
    session_id: str
    seq: int
    last_seq: int
    status: TurnStatus
    fencing_token: str = msgspec.field(name="token")
    user: Message | None
    assistant: Message | None
    idempotency: str
    created_at: datetime
    recorded_at: datetime
    expires_at: datetime
    attempt: int = 1
    lease_until: datetime | None = msgspec.field(default=None, name="until")
    body_hash: str | None = None
    receipt: Receipt | None = None
    prefix_marks: tuple[str, ...] = ()
    usage: dict[str, int] | None = None
    finish_reason: str | None = None
    error: TurnError | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    counter: str = ""  # by which the tokens of its messages were counted

    @property
    def messages(self) -> tuple[Message, ...]:
        user, assistant = self.user, self.assistant
        if user is None:
            return () if assistant is None else (assistant,)
        return (user,) if assistant is None else (user, assistant)

    @property
    def title(self) -> str:
        """A title without a model call: the first characters of the first message."""
        texts = [message.content for message in self.messages if message.content]
        return " ".join(texts[0].split())[:TITLE_CHARACTERS] if texts else ""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """What one compaction took out of messages `first_seq`…`last_seq`, for the life of its session
    that began at `begun`."""

    session_key: SessionKey
    first_seq: int
    last_seq: int
    text: str
    expires_at: datetime
    begun: datetime | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The rolled text of everything up to and with message `covers_through`.

    `retired` counts the statements that no longer fit; recall still finds them. The text is
    hidden from `expires_at` on, until it is rolled anew from the segments that live. `unfiled` is
    the segment of the last compaction as long as it is not stored as a document of its own.
    """

    text: str = ""
    version: int = 0
    covers_through: int = 0
    retired: int = 0
    tokens: int = 0
    degraded: bool = False
    expires_at: datetime = NEVER
    unfiled: Segment | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and watermarks of one conversation; everything else in it is derived."""

    key: SessionKey
    user_key: UserKey
    session_id: str
    title: str
    created_at: datetime
    updated_at: datetime
    first_seq: int = 1
    last_seq: int = 0
    summary: Summary = Summary()
    lexical_through: int = 0
    dense_through: int = 0
    facts_through: int = 0
    expires_at: datetime = NEVER
    ttl_seconds: float | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    erasing: bool = False

    def ends_at(self, last_activity: datetime, default_ttl: float) -> datetime:
        """When it ends if nothing is said after `last_activity`; ttls are seconds."""
        ttl = default_ttl if self.ttl_seconds is None else self.ttl_seconds
        return expiry_of(last_activity, ttl)

    def has_ended(self, newest: Turn | None, at: datetime, default_ttl: float) -> bool:
        """Whether its ttl after the last activity is over, or it is being erased and nothing has
        been said in it since. `newest` is its newest turn, of which it need not know yet."""
        last_seq = self.last_seq if newest is None else max(self.last_seq, newest.last_seq)
        if self.erasing and last_seq < self.first_seq:
            return True
        activity = self.updated_at if newest is None else max(self.updated_at, newest.recorded_at)
        return self.ends_at(activity, default_ttl) <= at

    def begun_anew(self, last_seq: int) -> Session:
        """The same session in a new life: empty, going on with the next seq."""
        return msgspec.structs.replace(
            self,
            title="",
            first_seq=last_seq + 1,
            last_seq=last_seq,
            summary=Summary(version=self.summary.version + 1, covers_through=last_seq),
            expires_at=NEVER,
        )

    def fields_of_new_life(self) -> dict[str, Any]:
        """What a store sets so that its document begins anew as this does. `last_seq` is missing:
        a turn that was inserted meanwhile may have raised it."""
        return {
            "title": "",
            "first_seq": self.first_seq,
            "summary": self.summary,
            "expires_at": self.expires_at,
        }


def new_session(user: UserKey, session_id: str, moment: datetime) -> Session:
    key = session_key(user, session_id)
    return Session(
        key=key, user_key=user, session_id=session_id, title="", created_at=moment,
        updated_at=moment,
    )  # fmt: skip


class LoadedSession(NamedTuple):
    """A session's document, if there is one, and its newest turns, newest first, without their
    receipts."""

    session: Session | None
    turns: list[Turn]

    @property
    def last_seq(self) -> int:
        """The seq of its last message, 0 without any."""
        newest = self.turns[0].last_seq if self.turns else 0
        return max(newest, self.session.last_seq if self.session else 0)

    def session_now(self, user: UserKey, session_id: str, default_ttl: float) -> Session:
        """The session as it counts at this moment: new, begun anew, or (the very same object) as
        it was loaded."""
        if self.session is None:
            return new_session(user, session_id, now())
        newest = self.turns[0] if self.turns else None
        if self.session.has_ended(newest, now(), default_ttl):
            return self.session.begun_anew(self.last_seq)
        return self.session


class Recollection(msgspec.Struct, frozen=True, kw_only=True):
    """One recalled passage of one message, best first; text and owner come from the store."""

    message: Message
    session_id: str
    passage: int
    score: float
    dense_rank: int | None
    lexical_rank: int | None


class Recalled(msgspec.Struct, frozen=True):
    """The outcome of a search: what was found; how many were refused on re-reading (`gone`) or
    stand in the window already; what failed."""

    items: tuple[Recollection, ...] = ()
    gone: int = 0
    in_window: int = 0
    degraded: tuple[str, ...] = ()
