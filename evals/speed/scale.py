"""What a turn costs in a large database, and on servers: two services take turns alternately.

Each service has its own stores: embedded ones, empty and filled with other users' turns and
points; with `--store` and `--index` the same on those servers, and each store without an index,
so that the stores themselves can be compared. Whatever else the machine does, it does to both,
and only the two that are compared run: with more of them every one would be met cold.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit, urlunsplit
from uuid import NAMESPACE_URL, uuid5

import httpx
import msgspec

from evals.speed.bench import (
    Service,
    model_calls,
    model_server,
    quiet,
    service,
    take_turn,
    user_texts,
)
from memory import MemoryConfig, User
from memory.embeddings import sparse
from memory.indexes.base import Payload, Point, VectorIndex
from memory.log.transitions import Incoming, recorded_turn
from memory.models import Turn, now, session_key, turn_id
from memory.sessions.lifetime import new_session
from memory.stores import make_store
from memory.stores.base import Store
from memory.strata import make_index
from memory.tokens import EstimatedCounter

USERS = 1_000
SESSION_TURNS = 100
SESSIONS_AT_ONCE = 4
TURNS_A_SESSION = 10  # of the measured user
POINTS_AT_ONCE = 1_000
YEAR = 365 * 86400.0
# What is compared with what, and how much more it may cost.
PAIRS = (
    ("embedded, filled", "embedded, empty", 1.2),
    ("servers, filled", "servers, empty", 1.2),
    ("MongoDB, no index", "SQLite, no index", 2.0),
)


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One service that is measured."""

    name: str
    store: str
    index: str
    collection: str = "strata"
    filled: bool = False


class ScaleFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in milliseconds, from the request to the model call."""

    name: str
    samples: int
    model_call_ms: float


def variants(folder: Path, *, store: str | None, index: str | None, turns: int) -> list[Variant]:
    def embedded(name: str, index: str = "edge", *, filled: bool = False) -> Variant:
        path = folder / name.replace(" ", "-")
        return Variant(
            name=name,
            store=f"sqlite:///{path}/strata.db",
            index="none" if index == "none" else f"edge:///{path}/index",
            filled=filled,
        )

    found = [embedded("embedded, empty"), embedded("embedded, filled", filled=True)]
    if store is None:
        return found
    found.append(embedded("SQLite, no index", "none"))
    found.append(Variant(name="MongoDB, no index", store=database(store, "alone"), index="none"))
    for name, filled in (("empty", False), (f"filled_{turns}", True)):
        found.append(
            Variant(
                name=f"servers, {name.partition('_')[0]}",
                store=database(store, name),
                index=index or "none",
                collection=f"strata_bench_{name}",
                filled=filled,
            )
        )
    return found


def database(url: str, name: str) -> str:
    """The same server's database for this variant."""
    parts = urlsplit(url)
    query = parts.query or ("authSource=admin" if parts.username else "")
    return urlunsplit(parts._replace(path=f"/strata_bench_{name}", query=query))


async def run(
    *,
    rounds: int,
    turns: int,
    points: int,
    store: str | None,
    index: str | None,
    tell: Callable[[str], None],
) -> list[ScaleFigures]:
    with tempfile.TemporaryDirectory(prefix="strata-bench-") as name:
        folder = Path(name)
        measured = variants(folder, store=store, index=index, turns=turns)
        for variant in measured:
            if variant.filled:
                await fill(variant, turns=turns, points=points, tell=tell)
        by_name = {variant.name: variant for variant in measured}
        found: list[ScaleFigures] = []
        for above, below, _ in PAIRS:
            if above in by_name:
                own = folder / f"services{len(found)}"
                own.mkdir()
                found += await _measure(own, [by_name[below], by_name[above]], rounds, tell)
        return found


async def fill(variant: Variant, *, turns: int, points: int, tell: Callable[[str], None]) -> None:
    """Other users' turns and points; nothing is done for what a run before has left there."""
    config = _config(variant)
    kept, projected = make_store(config), make_index(config)
    await kept.open()
    try:
        last = _sessions(turns)[-1] if turns else None
        if last is not None and await kept.sessions.get(last) is None:
            await _fill_store(kept, turns, lambda n: tell(f"{variant.name}: {n:,} turns"))
    finally:
        await kept.close()
    if projected is None:
        return
    await projected.open()
    try:
        if await projected.count() < points:
            await _fill_index(projected, points, turns)
    finally:
        await projected.flush()
        await projected.close()
    tell(f"{variant.name}: {points:,} points")


def _config(variant: Variant) -> MemoryConfig:
    return MemoryConfig.model_validate(
        {
            "store": {"url": variant.store, "timeout": "60s"},
            "index": {"url": variant.index, "collection": variant.collection, "timeout": "60s"},
        }
    )


def _sessions(turns: int) -> list[str]:
    """The keys of the sessions that hold other users' turns."""
    return [
        session_key(User("bench", f"user{n % USERS}").key, f"s{n // USERS}")
        for n in range(-(-turns // SESSION_TURNS))
    ]


async def _fill_store(store: Store, turns: int, tell: Callable[[int], None]) -> None:
    texts = user_texts()
    at_once = asyncio.Semaphore(SESSIONS_AT_ONCE)
    filled = 0

    async def fill_session(n: int, key: str) -> None:
        nonlocal filled
        async with at_once:
            user, name = User("bench", f"user{n % USERS}"), f"s{n // USERS}"
            size = min(SESSION_TURNS, turns - n * SESSION_TURNS)
            await store.turns.append(list(_turns(user, name, key, size, texts)))
            await store.work.mark_projected(key, through=size)
            document = new_session(user.key, name, now())
            await store.sessions.put(
                msgspec.structs.replace(
                    document, title=name, last_seq=size, lexical_through=size, dense_through=size
                )
            )
        filled += size
        if filled % (USERS * SESSION_TURNS) < size:
            tell(filled)

    *others, last = enumerate(_sessions(turns))
    await asyncio.gather(*(fill_session(n, key) for n, key in others))
    await fill_session(*last)  # it tells that all are there


def _turns(user: User, name: str, key: str, size: int, texts: list[str]) -> Iterator[Turn]:
    moment = now()
    for seq in range(1, size + 1):
        said = Incoming(role="user", content=texts[seq % len(texts)])
        turn = recorded_turn(user, name, seq, said, ttl=YEAR, counter=EstimatedCounter())
        at = moment - timedelta(minutes=size - seq)
        yield msgspec.structs.replace(turn, created_at=at, id=turn_id(key, seq))


async def _fill_index(index: VectorIndex, points: int, turns: int) -> None:
    vectors = [sparse.embed_document(text) for text in user_texts()]
    expires = int((now() + timedelta(days=365)).timestamp())
    keys = _sessions(max(turns, USERS * SESSION_TURNS))
    batch: list[Point] = []
    for n in range(points):
        key = keys[n % len(keys)]
        message = f"{turn_id(key, n // len(keys) + 1)}.u"
        payload = Payload(
            user=key.partition(".")[0], session=key, message=message, role="user", speakers=[],
            day=now().toordinal(), tokens=20, passage=0, expires_at=expires,
        )  # fmt: skip
        id_ = str(uuid5(NAMESPACE_URL, message))
        batch.append(Point(id_, payload, vectors[n % len(vectors)], None))
        if len(batch) == POINTS_AT_ONCE:
            await index.upsert(batch)
            batch = []
    await index.upsert(batch)


async def _measure(
    folder: Path, measured: list[Variant], rounds: int, tell: Callable[[str], None]
) -> list[ScaleFigures]:
    texts = user_texts()
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(model_server(folder))
        running: list[tuple[Variant, Service, httpx.AsyncClient]] = []
        for number, variant in enumerate(measured):
            own = folder / f"service{number}"
            own.mkdir()
            started = await stack.enter_async_context(
                service(
                    own,
                    model_url,
                    STRATA_STORE__URL=variant.store,
                    STRATA_INDEX__URL=variant.index,
                    STRATA_INDEX__COLLECTION=variant.collection,
                )
            )
            client = httpx.AsyncClient(base_url=started.url, timeout=60, trust_env=False)
            running.append((variant, started, await stack.enter_async_context(client)))
        names = " and ".join(variant.name for variant in measured)
        tell(f"{rounds} rounds over {names}")
        salt = int(now().timestamp())
        for n in range(rounds):
            for _, _, client in running:
                await take_turn(client, texts, f"{salt}-{n // TURNS_A_SESSION}", n, f"turn-{n}")
                await quiet(client)
        for _, _, client in running:
            await _forget(client)
        return [
            ScaleFigures(
                name=variant.name,
                samples=rounds,
                model_call_ms=round(median(_times(started, rounds)), 2),
            )
            for variant, started, _ in running
        ]


async def _forget(client: httpx.AsyncClient) -> None:
    """What was measured leaves servers as it found them."""
    for session in (await client.get("/v1/sessions?limit=1000")).json()["sessions"]:
        await client.delete(f"/v1/sessions/{session['session_id']}")


def _times(started: Service, rounds: int) -> list[float]:
    found = model_calls(started.log)
    # The first turns find cold caches, and a session's first window is empty everywhere.
    return [found[f"turn-{n}"] for n in range(min(TURNS_A_SESSION, rounds // 2), rounds)]


def table(figures: list[ScaleFigures]) -> str:
    """The figures as Markdown, with the ratios that are bounded."""
    by_name = {f.name: f.model_call_ms for f in figures}
    lines = ["| service | request to model call (ms, median) |", "|---|---|"]
    lines += [f"| {name} | {ms} |" for name, ms in by_name.items()]
    lines += ["", "| ratio | bound | measured |", "|---|---|---|"]
    lines += [
        f"| {above} / {below} | {bound} | {by_name[above] / by_name[below]:.2f} |"
        for above, below, bound in PAIRS
        if above in by_name
    ]
    return "\n".join(lines) + "\n"
