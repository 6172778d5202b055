"""Other users' turns and points, for stores and indexes that are to be large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from uuid import NAMESPACE_URL, uuid5

import msgspec

from evals.speed.turns import user_texts
from memory import MemoryConfig, User
from memory.embeddings import SparseVector, sparse_document
from memory.ids import MessageId, SessionKey, UserKey
from memory.indexes import make_index
from memory.indexes.base import Point, VectorIndex
from memory.indexes.features import Payload
from memory.log.transitions import Incoming, recorded_turn
from memory.models import Turn, new_session, now, session_key, turn_id
from memory.stores import make_store
from memory.stores.base import Store
from memory.tokens import EstimatedCounter

USERS = 1_000
SESSION_TURNS = 100
SESSIONS_AT_ONCE = 4
POINTS_AT_ONCE = 1_000
TTL_SECONDS = 365 * 86400.0

Tell = Callable[[str], None]


async def fill(config: MemoryConfig, *, name: str, turns: int, points: int, tell: Tell) -> None:
    """Fill the store and the index of `config`; what an earlier run left there counts."""
    await _fill_store(make_store(config), turns, lambda n: tell(f"{name}: {n:,} turns"))
    index = make_index(config)
    if index is not None:
        await _fill_index(index, points, turns)
        tell(f"{name}: {points:,} points")


def _sessions(turns: int) -> list[tuple[User, str, SessionKey]]:
    """The sessions that hold other users' turns."""
    found = []
    for n in range(-(-turns // SESSION_TURNS)):
        user, name = User("bench", f"user{n % USERS}"), f"s{n // USERS}"
        found.append((user, name, session_key(user.key, name)))
    return found


async def _fill_store(store: Store, turns: int, tell: Callable[[int], None]) -> None:
    await store.open()
    try:
        # The last session is written when all others are, so it shows that they are there.
        sessions = _sessions(turns)
        if not sessions or await store.sessions.get(sessions[-1][2]) is not None:
            return
        *others, last = sessions
        texts, at_once, filled = user_texts(), asyncio.Semaphore(SESSIONS_AT_ONCE), 0

        async def fill_session(user: User, name: str, key: SessionKey, size: int) -> None:
            nonlocal filled
            async with at_once:
                await _fill_session(store, user, name, list(_turns(user, name, key, size, texts)))
            filled += size
            if filled % (USERS * SESSION_TURNS) < size:
                tell(filled)

        await asyncio.gather(*(fill_session(*one, SESSION_TURNS) for one in others))
        await fill_session(*last, turns - len(others) * SESSION_TURNS)
    finally:
        await store.close()


async def _fill_session(store: Store, user: User, name: str, turns: Sequence[Turn]) -> None:
    size = len(turns)
    await store.turns.append(turns)
    await store.work.mark_projected(turns[0].session_key, through=size)
    await store.sessions.put(
        msgspec.structs.replace(
            new_session(user.key, name, now()),
            title=name,
            last_seq=size,
            lexical_through=size,
            dense_through=size,
        )
    )


def _turns(
    user: User, name: str, key: SessionKey, size: int, texts: Sequence[str]
) -> Iterator[Turn]:
    moment = now()
    for seq in range(1, size + 1):
        said = Incoming(role="user", content=texts[seq % len(texts)])
        turn = recorded_turn(user, name, seq, said, ttl=TTL_SECONDS, counter=EstimatedCounter())
        at = moment - timedelta(minutes=size - seq)
        yield msgspec.structs.replace(turn, created_at=at, id=turn_id(key, seq))


async def _fill_index(index: VectorIndex, points: int, turns: int) -> None:
    await index.open()
    try:
        if await index.count() >= points:
            return
        vectors = [sparse_document(text) for text in user_texts()]
        made = _points(points, _sessions(max(turns, USERS * SESSION_TURNS)), vectors)
        while batch := [point for point, _ in zip(made, range(POINTS_AT_ONCE), strict=False)]:
            await index.upsert(batch)
    finally:
        await index.flush()
        await index.close()


def _points(
    points: int,
    sessions: Sequence[tuple[User, str, SessionKey]],
    vectors: Sequence[SparseVector],
) -> Iterator[Point]:
    day, expires = now().toordinal(), int((now() + timedelta(seconds=TTL_SECONDS)).timestamp())
    for n in range(points):
        user, _, key = sessions[n % len(sessions)]
        message = MessageId(f"{turn_id(key, n // len(sessions) + 1)}.u")
        payload = Payload(
            user=UserKey(user.key), session=key, message=message, role="user", speakers=[],
            day=day, tokens=20, passage=0, expires_at=expires,
        )  # fmt: skip
        yield Point(str(uuid5(NAMESPACE_URL, message)), payload, vectors[n % len(vectors)], None)
