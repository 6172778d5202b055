"""Memory: the turn from its question to its stored answer. The only file that joins the layers.

`accept` makes the user's message durable, `context` builds what the model reads, `flush` and
`finish` store the answer. Reading back is in library.py, catching up in projection.py, expiry in
sweeper.py; they share the parts that are put together in factory.py.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from memory import window
from memory.config import BudgetConfig, MemoryConfig
from memory.context import Material, assemble, check_question
from memory.errors import InvalidInput, SessionBusy, StoreUnavailable, TurnLost
from memory.gates import SessionGates
from memory.lifetimes import begun_anew, ended, expiry_of, new_session
from memory.models import (
    Context,
    Message,
    MessageStatus,
    Recalled,
    RecallScope,
    Session,
    Turn,
    TurnError,
    TurnStatus,
    User,
    now,
    session_key,
    turn_id,
)
from memory.recall import Recall
from memory.rereading import reread
from memory.stores.base import Loaded, TurnStore
from memory.tokens import TokenCounter

_RACES = 20


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A message to record. `id` makes it idempotent in its session."""

    role: str
    content: str
    created_at: datetime | None = None
    speaker: str | None = None
    id: str | None = None


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """`message_ids` are those of all given messages in order, duplicates included."""

    accepted: int
    duplicates: int
    last_seq: int
    message_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question of one user in one session."""

    user: User
    session_id: str
    question: str
    recall: RecallScope = "user"
    system: str = ""
    budget: BudgetConfig | None = None
    metadata: dict[str, Any] | None = None
    recall_deadline: float | None = None

    @property
    def key(self) -> str:
        return session_key(self.user.key, self.session_id)


@dataclass(kw_only=True)
class Accepted:
    """A durable question. Must be ended by `finish` (or `abandon`), or its session stays busy."""

    ask: Ask
    turn: Turn
    session: Session
    turns: Sequence[Turn]
    recalled: asyncio.Task[Recalled]
    ended: bool = field(default=False)


class Memory:
    def __init__(
        self,
        *,
        store: TurnStore,
        recall: Recall,
        counter: TokenCounter,
        config: MemoryConfig,
        gates: SessionGates,
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._recall = recall
        self._config = config
        self._gates = gates
        self._wake = wake
        self.counter = counter

    def stop(self) -> None:
        """Take no more turns or messages; those that wait for their session are refused too."""
        self._gates.shut()

    async def accept(self, ask: Ask) -> Accepted:
        """Make the question durable and begin to recall.

        Raises BudgetExceeded, SessionBusy, Stopping, StoreUnavailable; then nothing was stored.
        """
        budget = ask.budget or self._config.budget
        check_question(ask.question, ask.system, budget, self.counter)
        inside, recalled = self._begin_recall(ask)
        try:
            at_once = self._gates.is_free(ask.key)
            await self._gates.acquire(ask.key, wait_seconds=self._config.session.wait)
            if not at_once:
                # What was found before the wait does not know the turns that ended meanwhile.
                recalled.cancel()
                inside, recalled = self._begin_recall(ask)
            try:
                session, turns, turn = await self._insert(ask, inside)
            except BaseException:
                self._gates.release(ask.key)
                raise
        except BaseException:
            recalled.cancel()
            raise
        self._wake(ask.key)
        return Accepted(ask=ask, turn=turn, session=session, turns=turns, recalled=recalled)

    async def _insert(
        self, ask: Ask, inside: asyncio.Future[frozenset[str]]
    ) -> tuple[Session, Sequence[Turn], Turn]:
        for _race in range(_RACES):
            session, loaded = await self._load(ask.user, ask.session_id)
            if not inside.done():
                inside.set_result(self._shown(ask, _window_turns(session, loaded)))
            turn = self._new_turn(ask, last_seq(loaded) + 1)
            if await self._store.append([turn]):
                return session, _window_turns(session, loaded), turn
        raise SessionBusy(1.0)

    def _new_turn(self, ask: Ask, seq: int) -> Turn:
        moment = now()
        id_ = turn_id(ask.key, seq)
        shared: dict[str, Any] = {"created_at": moment, "recorded_at": moment, "turn_id": id_}
        return Turn(
            id=id_,
            user_key=ask.user.key,
            session_key=ask.key,
            session_id=ask.session_id,
            seq=seq,
            last_seq=seq + 1,
            status="running",
            token=secrets.token_hex(8),
            user=Message(
                id=f"{id_}.u",
                seq=seq,
                role="user",
                content=ask.question,
                status="done",
                tokens=self.counter.count(ask.question),
                **shared,
            ),
            assistant=Message(
                id=f"{id_}.a",
                seq=seq + 1,
                role="assistant",
                content="",
                status="running",
                tokens=0,
                **shared,
            ),
            idempotency=f"t{id_}",
            created_at=moment,
            recorded_at=moment,
            expires_at=expiry_of(moment, self._config.ttl.memory),
            metadata=ask.metadata,
        )

    async def context(self, accepted: Accepted) -> Context:
        """What the model is to read for an accepted turn."""
        recalled = await accepted.recalled
        return self._assemble(accepted.ask, accepted.session, accepted.turns, recalled)

    async def preview(self, ask: Ask) -> Context:
        """What a turn would send now; nothing is stored, an unknown session is an empty one."""
        budget = ask.budget or self._config.budget
        check_question(ask.question, ask.system, budget, self.counter)
        inside, recalled = self._begin_recall(ask)
        try:
            session, loaded = await self._load(ask.user, ask.session_id, restart=False)
            turns = _window_turns(session, loaded)
            inside.set_result(self._shown(ask, turns))
            return self._assemble(ask, session, turns, await recalled)
        finally:
            recalled.cancel()

    def plain(self, ask: Ask) -> Context:
        """The context of a stateless call: system text and question alone."""
        session = new_session(ask.user.key, ask.session_id, now())
        return self._assemble(ask, session, (), Recalled())

    def _assemble(
        self, ask: Ask, session: Session, turns: Sequence[Turn], recalled: Recalled
    ) -> Context:
        summary, degraded = session.summary, ("summary",) if session.summary.degraded else ()
        if summary.expires_at <= now():
            summary = msgspec.structs.replace(summary, text="")
        material = Material(
            question=ask.question,
            system=ask.system,
            summary=summary,
            turns=_finished(turns),
            recalled=recalled,
            degraded=degraded,
            previous_marks=next((t.prefix_marks for t in reversed(turns) if t.prefix_marks), ()),
            unread=turns[0].seq - _first_seq(session) if turns else 0,
        )
        return assemble(material, budget=ask.budget or self._config.budget, counter=self.counter)

    async def flush(self, accepted: Accepted, text: str) -> None:
        """Store the answer so far. Raises TurnLost, StoreUnavailable."""
        await self._save(accepted, text, "running", "running")

    async def finish(
        self,
        accepted: Accepted,
        text: str,
        *,
        status: TurnStatus,
        context: Context | None,
        usage: dict[str, int] | None = None,
        finish_reason: str | None = None,
        error: TurnError | None = None,
        model: str | None = None,
    ) -> Turn:
        """Store the answer and free the session. Raises TurnLost, StoreUnavailable.

        A failed turn's text, if there is any, stays as a partial message.
        """
        message: MessageStatus = "partial" if status == "failed" and text else status
        try:
            return await self._save(
                accepted,
                text,
                status,
                message,
                receipt=context.receipt if context else None,
                prefix_marks=context.prefix_marks if context else (),
                usage=usage,
                finish_reason=finish_reason,
                error=error,
                model=model,
            )
        finally:
            self.abandon(accepted)

    def abandon(self, accepted: Accepted) -> None:
        """Free the session without storing anything more. Harmless when repeated."""
        if not accepted.ended:
            accepted.ended = True
            accepted.recalled.cancel()
            self._gates.release(accepted.ask.key)
            self._wake(accepted.ask.key)

    async def _save(
        self,
        accepted: Accepted,
        text: str,
        status: TurnStatus,
        message_status: MessageStatus,
        **changes: Any,
    ) -> Turn:
        turn = accepted.turn
        assert turn.assistant is not None
        answer = msgspec.structs.replace(
            turn.assistant,
            content=text,
            status=message_status,
            tokens=self.counter.count(text),
            created_at=now(),
        )
        turn = msgspec.structs.replace(turn, assistant=answer, status=status, **changes)
        if not await self._store.save(turn):
            raise TurnLost("the turn was erased or taken over")
        return turn

    async def record(self, user: User, session_id: str, messages: Sequence[Incoming]) -> Recorded:
        """Store messages without calling a model, in order; those whose `id` is known are
        skipped. Raises InvalidInput, SessionBusy, StoreUnavailable; `done` says how many of the
        given messages were dealt with before the fault."""
        for index, incoming in enumerate(messages):
            if incoming.role not in ("user", "assistant"):
                raise InvalidInput(f"messages[{index}].role", "must be user or assistant", done=0)
            if not incoming.content.strip():
                raise InvalidInput(f"messages[{index}].content", "must not be blank", done=0)
        key = session_key(user.key, session_id)
        await self._gates.acquire(key, wait_seconds=self._config.session.wait)
        try:
            return await self._record(user, session_id, key, messages)
        finally:
            self._gates.release(key)
            self._wake(key)

    async def _record(
        self, user: User, session_id: str, key: str, messages: Sequence[Incoming]
    ) -> Recorded:
        names = [f"m{key}:{m.id}" for m in messages if m.id is not None]
        known = {
            name: turn.messages[0].id
            for name, turn in (await self._store.by_idempotency(user.key, names)).items()
        }
        stored: dict[int, str] = {}  # ids by place in `messages`, also of tries that lost a race
        for _race in range(_RACES):
            _, loaded = await self._load(user, session_id)
            seq = last_seq(loaded)
            fresh: list[Turn] = []
            places: list[int] = []
            ids = dict(stored)
            for place, incoming in enumerate(messages):
                name = f"m{key}:{incoming.id}" if incoming.id is not None else None
                if place in stored:
                    continue
                if name in known:
                    ids[place] = known[name]
                    continue
                turn = self._recorded_turn(user, session_id, key, seq + len(fresh) + 1, incoming)
                fresh.append(turn)
                places.append(place)
                ids[place] = turn.messages[0].id
                if name is not None:
                    known[name] = ids[place]
            inserted = await self._store.append(fresh)
            stored.update((place, ids[place]) for place in places[:inserted])
            if inserted == len(fresh):
                return Recorded(
                    accepted=len(stored),
                    duplicates=len(messages) - len(stored),
                    last_seq=seq + len(fresh),
                    message_ids=tuple(ids[place] for place in range(len(messages))),
                )
            again = await self._store.by_idempotency(user.key, names)
            known = {name: turn.messages[0].id for name, turn in again.items()}
        raise StoreUnavailable("another process writes to this session without end")

    def _recorded_turn(
        self, user: User, session_id: str, key: str, seq: int, incoming: Incoming
    ) -> Turn:
        moment = now()
        id_ = turn_id(key, seq)
        said = incoming.created_at or moment
        message = Message(
            id=f"{id_}.{'u' if incoming.role == 'user' else 'a'}",
            client_id=incoming.id,
            seq=seq,
            role="user" if incoming.role == "user" else "assistant",
            content=incoming.content,
            speaker=incoming.speaker,
            status="done",
            tokens=self.counter.count(incoming.content),
            created_at=said,
            recorded_at=moment,
        )
        return Turn(
            id=id_,
            user_key=user.key,
            session_key=key,
            session_id=session_id,
            seq=seq,
            last_seq=seq,
            status="done",
            token="",
            user=message if message.role == "user" else None,
            assistant=message if message.role == "assistant" else None,
            idempotency=f"t{id_}" if incoming.id is None else f"m{key}:{incoming.id}",
            created_at=said,
            recorded_at=moment,
            expires_at=expiry_of(moment, self._config.ttl.memory),
        )

    async def _load(
        self, user: User, session_id: str, *, restart: bool = True
    ) -> tuple[Session, Loaded]:
        """The session as it counts now, and its newest turns. With `restart` (for who holds its
        gate), a turn left running is ended, and a session that ended begins anew in the store.
        """
        key = session_key(user.key, session_id)
        loaded = await self._store.load(key)
        if restart and loaded.turns and loaded.turns[0].status == "running":
            # The session's gate is ours, so whoever wrote this turn has given it up.
            await self._store.save(_interrupted(loaded.turns[0]))
            loaded = await self._store.load(key)
        session = loaded.session
        if session is None:
            return new_session(user.key, session_id, now()), loaded
        last = loaded.turns[0] if loaded.turns else None
        if ended(session, last, now(), self._config.ttl.session):
            session = begun_anew(session, last_seq(loaded))
            if restart:
                await self._store.change_session(
                    key, {"first_seq": session.first_seq, "summary": session.summary, "title": ""}
                )
                await self._store.drop_segments(key)
        return session, loaded

    def _begin_recall(
        self, ask: Ask
    ) -> tuple[asyncio.Future[frozenset[str]], asyncio.Task[Recalled]]:
        """The search beside the read of the session; it is told what the window will show."""
        inside: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
        return inside, asyncio.create_task(self._recalled(ask, inside))

    def _shown(self, ask: Ask, turns: Sequence[Turn]) -> frozenset[str]:
        """The ids of the messages that the window will most likely hold."""
        room = (ask.budget or self._config.budget).window_tokens
        chosen, _ = window.select(_finished(turns), budget_tokens=room, counter=self.counter)
        return frozenset(m.id for turn in chosen for m in window.living(turn))

    async def _recalled(self, ask: Ask, inside: asyncio.Future[frozenset[str]]) -> Recalled:
        budget = ask.budget or self._config.budget
        if ask.recall == "none" or budget.recall_tokens == 0:
            return Recalled()
        ranked = await self._recall.search(
            ask.question,
            user=ask.user.key,
            session=ask.key if ask.recall == "session" else None,
            now=now(),
            deadline=ask.recall_deadline,
        )
        try:
            return await reread(
                ranked,
                store=self._store,
                user=ask.user.key,
                inside=await inside,
                budget_tokens=budget.recall_tokens,
                ttl=self._config.ttl,
            )
        except StoreUnavailable:
            return Recalled(degraded=("recall",))


def last_seq(loaded: Loaded) -> int:
    newest = loaded.turns[0].last_seq if loaded.turns else 0
    return max(newest, loaded.session.last_seq if loaded.session else 0)


def _interrupted(turn: Turn) -> Turn:
    answer = turn.assistant and msgspec.structs.replace(turn.assistant, status="interrupted")
    return msgspec.structs.replace(turn, status="interrupted", assistant=answer)


def _first_seq(session: Session) -> int:
    """The first message after the summary."""
    return max(session.first_seq, session.summary.covers_through + 1)


def _window_turns(session: Session, loaded: Loaded) -> list[Turn]:
    """The turns after the summary, oldest first."""
    return [turn for turn in reversed(loaded.turns) if turn.seq >= _first_seq(session)]


def _finished(turns: Sequence[Turn]) -> list[Turn]:
    """Those that live and have ended."""
    moment = now()
    return [turn for turn in turns if turn.status != "running" and turn.expires_at > moment]
