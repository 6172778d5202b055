"""MongoDB in particular: round trips, repeated writes, network faults, its own deletion."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from math import inf
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from servers.mongo import Mongo
from servers.proxy import Proxy
from servers.repeating import Repeating
from unit.builders import NOON, SESSION, USER, counter, dialogue, turn
from waiting import wait_for

from memory import MemoryConfig, Strata, TurnRequest
from memory.embeddings import DenseModel
from memory.errors import ConfigError, StoreUnavailable
from memory.models import Segment, Summary, Turn, User, new_session, now, session_key
from memory.stores.mongo.collections import INDEXES
from memory.stores.mongo.store import MongoStore
from memory.strata import put_together

KEY = session_key(USER.key, SESSION)
DEADLINE_SECONDS = 1.0
LATE_SECONDS = 2 * DEADLINE_SECONDS + 0.25  # the store's own slack; two deadlines would be later
TICK_SECONDS = 0.01
NOT_OURS = {"hello", "ismaster", "saslStart", "saslContinue", "endSessions"}


class Commands(CommandListener):
    """The names of the commands that were sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in NOT_OURS:
            self.sent.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def take(self) -> list[str]:
        sent, self.sent = self.sent, []
        return sent


class Filters(Commands):
    """The finds that were sent."""

    sent: list[Any]

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "find":
            about = ("find", "filter", "sort", "projection", "limit")
            self.sent.append({name: event.command[name] for name in about if name in event.command})


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[MongoStore]:
    store = MongoStore(url, **{"purge_grace_seconds": inf, **options})  # type: ignore[arg-type]
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """The block ends within LATE_SECONDS, not counting what a busy machine took from this process:
    that is how late the timers of its own loop were."""
    began, stalled = time.monotonic(), 0.0

    async def tick() -> None:
        nonlocal stalled
        while True:
            asked = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            stalled += max(0.0, time.monotonic() - asked - 2 * TICK_SECONDS)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert time.monotonic() - began - stalled < LATE_SECONDS


def bare(store: MongoStore) -> Strata:
    """A memory without an index, in which nothing runs by itself."""
    config = MemoryConfig.model_validate({"index": {"url": "none"}})
    off = config.embedding.model_copy(update={"provider": "none"})
    return put_together(
        config,
        store=store,
        index=None,
        embeddings=DenseModel(off),
        counter=counter(),
        summarizer=None,
    )


def finished(running: Turn) -> Turn:
    assert running.assistant is not None
    answer = msgspec.structs.replace(running.assistant, content="answer", status="done")
    return msgspec.structs.replace(running, status="done", assistant=answer)


def started(seq: int = 1, token: str = "mine") -> Turn:
    return turn("question", "", seq=seq, status="running", token=token)


# --- round trips -----------------------------------------------------------------------------


async def test_a_turn_takes_two_reads_one_insert_and_one_update(mongo_url: str) -> None:
    commands = Commands()
    async with opened(mongo_url, listeners=[commands]) as store:
        await store.turns.append(dialogue([("q", "a")] * 40))
        await store.sessions.put(new_session(USER.key, SESSION, NOON))
        commands.take()
        assert len((await store.turns.load(KEY)).turns) == 40
        assert commands.take() == ["find", "find"]
        await store.turns.append([started(81)])
        assert commands.take() == ["insert"]
        await store.turns.save(finished(started(81)))
        assert commands.take() == ["update"]
        await store.turns.get_many([turn("q", seq=n).id for n in range(1, 81)], now=NOON)
        assert commands.take() == ["find"]
        await store.turns.history(KEY, now=NOON, before=None, first=1, limit=200)
        assert commands.take() == ["find"]
        await store.turns.of_user(USER.key, now=NOON, limit=200)
        assert commands.take() == ["find"]


@pytest.mark.parametrize("keyed", [False, True])
async def test_the_same_holds_for_a_whole_turn_of_the_memory(mongo_url: str, keyed: bool) -> None:
    """With what the session already holds; a key is one more find beside the others. Afterwards
    each flush is one update."""
    commands = Commands()
    async with opened(mongo_url, timeout_seconds=5.0, listeners=[commands]) as store:
        strata = bare(store)
        for n in range(3):
            commands.take()
            accepted = await strata.memory.begin(
                TurnRequest(
                    user=USER,
                    session_id=SESSION,
                    question=f"question {n}",
                    idempotency_key=f"key {n}" if keyed else None,
                )
            )
            taken = commands.take()
            if n == 0:
                assert taken == ["find"] * (2 + keyed) + ["insert"]
            else:  # what this process has left is gone on with: no waiting for the reads
                assert sorted(taken) == ["find", "find", "insert"]
            context = await accepted.context()
            assert commands.take() == []
            for text in ("an", "an ans"):
                await accepted.flush(text)
                assert commands.take() == ["update"]
            await accepted.finish("answer", status="done")
            assert commands.take() == ["update"]
            assert context.receipt.layers.window.messages == 2 * n
        await strata.projector.caught_up()


async def test_session_turns_and_key_are_read_side_by_side(mongo: Mongo, mongo_url: str) -> None:
    with Proxy(*mongo.address) as proxy:
        url = mongo.database(urlsplit(mongo_url).path[1:], port=proxy.port)
        async with opened(url) as store:
            await asyncio.gather(*(store.turns.load(KEY) for _ in range(3)))  # opens connections
            proxy.mode("latency", seconds=0.4)

            async def least_seconds(call: Callable[[int], Coroutine[Any, Any, Any]]) -> float:
                seconds = []
                for n in range(3):  # one that has to connect anew takes longer
                    began = time.monotonic()
                    await call(n)
                    seconds.append(time.monotonic() - began)
                return min(seconds)

            assert 0.4 <= await least_seconds(lambda _: store.turns.load(KEY)) < 0.75
            memory = bare(store).memory

            async def accept(n: int) -> None:
                ask = TurnRequest(
                    user=USER, session_id=f"s{n}", question="q", idempotency_key=f"k{n}",
                    recall="none",
                )  # fmt: skip
                (await memory.begin(ask)).abandon()

            assert 0.8 <= await least_seconds(accept) < 1.15, "one wait to read, one to insert"

            waits = []
            for _ in range(4):
                began = time.monotonic()
                accepted = await memory.begin(
                    TurnRequest(user=USER, session_id="s", question="q", recall="none")
                )
                waits.append(time.monotonic() - began)
                await accepted.finish("a", status="done")
            assert 0.4 <= min(waits[1:]) < 0.75, "one wait where the session was left here"


# --- repeated writes -------------------------------------------------------------------------


@pytest.fixture
def repeating(mongo: Mongo) -> Iterator[Repeating]:
    with Repeating(*mongo.address, tls=mongo.tls) as proxy:
        yield proxy


@pytest.fixture
async def repeated(mongo: Mongo, mongo_url: str, repeating: Repeating) -> AsyncIterator[MongoStore]:
    """A store behind `repeating`, which ends TLS."""
    name = urlsplit(mongo_url).path[1:]
    url = mongo.database(name, port=repeating.port, ends_tls=True)
    async with opened(url) as store:
        yield store
    assert repeating.repeated


async def test_an_insert_that_the_driver_repeats_counts_as_inserted(
    repeated: MongoStore, repeating: Repeating
) -> None:
    repeating.repeat("insert")
    assert await repeated.turns.append([started()]) == 1
    assert await repeated.turns.append([started()]) == 0, (
        "but another one of the same token does not"
    )
    repeating.repeat("insert")
    assert await repeated.turns.append(dialogue([("q", "a")] * 5)) == 0
    taken = turn("q", seq=7, token="theirs")
    await repeated.turns.append([taken])
    repeating.repeat("insert")
    batch = [turn("q", seq=n) for n in (3, 4, 5, 7, 8)]
    assert await repeated.turns.append(batch) == 3
    found = await repeated.turns.range(KEY, after=0, limit=9)
    assert [one.seq for one in found] == [1, 3, 4, 5, 7]


async def test_an_update_that_the_driver_repeats_counts_as_done(
    repeated: MongoStore, repeating: Repeating
) -> None:
    await repeated.turns.append([started()])
    repeating.repeat("update")
    assert await repeated.turns.save(finished(started()))
    assert not await repeated.turns.save(finished(started())), "it does not run any more"
    session = new_session(USER.key, SESSION, NOON)
    repeating.repeat("insert")
    assert await repeated.sessions.put(session)
    assert not await repeated.sessions.put(session)
    repeating.repeat("update")
    rolled = {"summary": Summary(text="rolled", version=1)}
    assert await repeated.sessions.change(KEY, rolled, unchanged=session)
    assert not await repeated.sessions.change(KEY, rolled, unchanged=session)
    repeating.repeat("update")
    later = NOON + timedelta(minutes=1)
    assert await repeated.sessions.claim(KEY, worker="a", until=later, now=NOON)


# --- network faults --------------------------------------------------------------------------

FAULTS = {
    "refuse": {},
    "reset": {},
    "blackhole": {},
    "latency": {"seconds": 30.0},
    "cut": {"after_bytes": 20},
}


@pytest.mark.parametrize("mode", FAULTS)
async def test_a_store_that_is_away_is_told_in_time_and_comes_back(
    mongo: Mongo, mongo_url: str, mode: str
) -> None:
    with Proxy(*mongo.address) as proxy:
        url = mongo.database(urlsplit(mongo_url).path[1:], port=proxy.port)
        async with opened(mongo_url, timeout_seconds=30.0) as store:
            await store.turns.append([started(1)])
            await store.sessions.put(new_session(USER.key, SESSION, NOON))
        async with opened(url, timeout_seconds=DEADLINE_SECONDS) as store:
            proxy.mode(mode, **FAULTS[mode])  # type: ignore[arg-type]

            async def is_told(call: Coroutine[Any, Any, Any]) -> None:
                async with in_time():
                    with pytest.raises(StoreUnavailable) as told:
                        await call
                assert "lost" not in str(told.value)

            await is_told(store.ping())
            await asyncio.gather(
                is_told(store.turns.load(KEY)),
                is_told(store.turns.append([turn("lost", seq=3, token="lost")])),
                is_told(store.turns.save(finished(started(1)))),
                is_told(store.sessions.change(KEY, {"title": "lost"})),
                is_told(store.sessions.delete("nobody.nothing")),
                is_told(store.work.pending()),
                is_told(MongoStore(url, timeout_seconds=DEADLINE_SECONDS).open()),
            )
            proxy.mode("pass")
            deadline = time.monotonic() + 60
            while True:
                with suppress(StoreUnavailable):
                    await store.turns.append([turn("back", seq=5, token="back")])
                    break
                assert time.monotonic() < deadline
            found = {one.fencing_token: one for one in (await store.turns.load(KEY)).turns}
            assert {"mine", "back"} <= set(found)


async def test_many_calls_into_a_black_hole_all_end_in_time(mongo: Mongo, mongo_url: str) -> None:
    with Proxy(*mongo.address) as proxy:
        url = mongo.database(urlsplit(mongo_url).path[1:], port=proxy.port)
        async with opened(url, timeout_seconds=DEADLINE_SECONDS) as store:
            proxy.mode("blackhole")
            calls = [store.turns.append([turn("lost", seq=n)]) for n in range(1, 101)]
            async with in_time():
                told = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in told} == {StoreUnavailable}
            proxy.mode("pass")


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://anna:s3cret@host:port/x",
        "mongodb://anna:s3cret@/x",
        "mongodb://anna:s3@cret@host/x",
        "mongodb://anna:s3cret@host/in.valid/x",
    ],
)
async def test_a_url_that_makes_no_sense_is_refused_without_its_password(url: str) -> None:
    with pytest.raises((ConfigError, StoreUnavailable)) as told:
        await MongoStore(url, timeout_seconds=0.2).open()
    assert "cret" not in str(told.value)


async def test_an_index_of_another_kind_in_the_way_is_named(mongo: Mongo, mongo_url: str) -> None:
    database = mongo.client[urlsplit(mongo_url).path[1:]]
    database["turns"].create_index([("user_key", 1), ("idempotency", 1)], name="idempotency")
    with pytest.raises(ConfigError, match="'idempotency'"):
        await MongoStore(mongo_url).open()


async def test_credentials_that_are_refused_are_a_matter_of_configuration(
    full_mongo: Mongo, mongo_url: str
) -> None:
    parts = urlsplit(mongo_url)
    place = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"nobody:s3cret@{place}").geturl()
    with pytest.raises(ConfigError, match="credentials") as told:
        await MongoStore(url).open()
    assert "s3cret" not in str(told.value)


async def test_it_opens_again_over_what_is_there(mongo: Mongo, mongo_url: str) -> None:
    for _ in range(2):
        async with opened(mongo_url):
            pass
    database = mongo.client[urlsplit(mongo_url).path[1:]]
    for collection in ("turns", "sessions", "segments"):
        there = set(database[collection].index_information()) - {"_id_"}
        assert there == {i.name for i in INDEXES if i.collection == collection}


def raw(mongo: Mongo, url: str) -> Any:
    """The database itself."""
    return mongo.client[urlsplit(url).path[1:]]


async def test_a_start_asks_for_the_sessions_without_dense_vectors_alone(
    mongo: Mongo, mongo_url: str
) -> None:
    """Every start paged through all sessions."""
    commands = Commands()
    async with opened(mongo_url, listeners=[commands]) as store:
        for n in range(250):
            whole = new_session(USER.key, f"s{n}", NOON)
            await store.sessions.put(msgspec.structs.replace(whole, last_seq=2, dense_through=2))
        commands.take()
        await store.work.mark_dense_pending(reset=False)
        assert commands.take() == ["find"]
        key = session_key(USER.key, "s7")
        await store.turns.append(dialogue([("q", "a")] * 2, session="s7"))
        await store.work.mark_projected(key, through=4)
        await store.sessions.change(key, {"last_seq": 4, "title": "longer"})
        assert raw(mongo, mongo_url)["sessions"].count_documents({"without_dense": key}) == 1
        await store.work.mark_dense_pending(reset=False)
        assert await store.work.pending() == [key]
        commands.take()
        await store.sessions.change(key, {"lexical_through": 4, "dense_through": 4})
        assert commands.take() == ["update"]
        marked = {"without_dense": {"$exists": True}}
        assert raw(mongo, mongo_url)["sessions"].count_documents(marked) == 0
        await store.sessions.change(key, {"dense_through": 2})
        assert raw(mongo, mongo_url)["sessions"].count_documents(marked) == 1
        await store.work.mark_dense_pending(reset=True)
        assert raw(mongo, mongo_url)["sessions"].count_documents(marked) == 250


async def test_a_database_of_release_0_1_0_is_brought_up_to_date_once(
    mongo: Mongo, mongo_url: str
) -> None:
    database = raw(mongo, mongo_url)
    async with opened(mongo_url) as store:
        for n in range(250):
            whole = new_session(USER.key, f"s{n}", NOON)
            dense = 1 if n % 100 == 0 else 2
            await store.turns.append(dialogue([("q", "a")], session=f"s{n}"))
            await store.sessions.put(
                msgspec.structs.replace(whole, last_seq=2, lexical_through=2, dense_through=dense)
            )
            await store.work.mark_projected(whole.key, through=2)
    # As that release left it: no document of the collection `meta`, no field in sessions.
    database["meta"].delete_many({})
    database["sessions"].update_many({}, {"$unset": {"without_dense": ""}})
    await asyncio.gather(*(_open_and_close(mongo_url) for _ in range(3)))
    commands = Commands()
    async with opened(mongo_url, listeners=[commands]) as store:
        assert commands.take().count("find") == 1, "only that it is up to date"
        await store.work.mark_dense_pending(reset=False)
        behind = {session_key(USER.key, f"s{n}") for n in (0, 100, 200)}
        assert set(await store.work.pending()) == behind


async def _open_and_close(url: str) -> None:
    async with opened(url):
        pass


async def test_a_database_of_a_later_release_is_refused(mongo: Mongo, mongo_url: str) -> None:
    await _open_and_close(mongo_url)
    raw(mongo, mongo_url)["meta"].update_one({"_id": "schema"}, {"$inc": {"version": 1}})
    with pytest.raises(ConfigError, match=r"version 3.*start the release"):
        await _open_and_close(mongo_url)


async def test_several_workers_may_start_on_an_empty_database_at_once(mongo_url: str) -> None:
    stores = [MongoStore(mongo_url, timeout_seconds=5) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    racers = [turn("q", token=str(n)) for n in range(4)]
    won = await asyncio.gather(
        *(store.turns.append([racer]) for store, racer in zip(stores, racers, strict=True))
    )
    assert sorted(won) == [0, 0, 0, 1]
    await asyncio.gather(*(store.close() for store in stores))


# --- what only a full server shows -----------------------------------------------------------


async def test_the_server_deletes_what_expired_when_no_worker_runs(
    full_mongo: Mongo, mongo_url: str
) -> None:
    moment = now()
    async with opened(mongo_url, purge_grace_seconds=0.0) as store:
        await store.turns.append(
            [
                turn("canary", seq=1, expires=moment + timedelta(seconds=1)),
                turn("young", seq=2, expires=moment + timedelta(days=1)),
                turn("for ever", seq=3),
            ]
        )
        for first, expires in ((1, moment), (5, moment + timedelta(days=1))):
            await store.segments.put(
                Segment(
                    session_key=KEY,
                    first_seq=first,
                    last_seq=first,
                    text="canary",
                    expires_at=expires,
                )
            )
    async with opened(mongo_url) as graceful:
        await graceful.turns.append([turn("graceful", seq=4, expires=moment)])
    database = full_mongo.client[urlsplit(mongo_url).path[1:]]

    def gone() -> bool:
        there = {one["seq"] for one in database["turns"].find({}, {"seq": 1})}
        segments = {one["first_seq"] for one in database["segments"].find({})}
        return there == {2, 3, 4} and segments == {5}

    await asyncio.to_thread(wait_for, gone, within_seconds=150, what="deletion by the server")


async def test_every_hot_query_is_served_by_an_index(full_mongo: Mongo, mongo_url: str) -> None:
    users = [User("acme", f"user{n}") for n in range(30)]
    commands = Filters()
    async with opened(mongo_url, listeners=[commands]) as store:
        for user in (USER, *users):
            for name in ("one", "two"):
                await store.turns.append(dialogue([("q", "a")] * 30, user=user, session=name))
                await store.sessions.put(new_session(user.key, name, NOON))
                await store.work.mark_projected(session_key(user.key, name), through=58)
        key = session_key(USER.key, "one")
        one = turn("q", session="one", seq=1)
        commands.sent.clear()
        await store.turns.load(key)
        await store.turns.get_many([one.id], now=NOON)
        await store.turns.get(one.id, now=NOON)
        await store.turns.by_idempotency(USER.key, [one.idempotency])
        await store.turns.history(key, now=NOON, before=31, first=1, limit=10)
        await store.turns.range(key, after=50, limit=10)
        await store.turns.of_user(USER.key, now=NOON, limit=10)
        await store.turns.of_user(USER.key, now=NOON, limit=10, before=(NOON, one.id))
        await store.sessions.page(USER.key, before=None, limit=10)
        await store.work.pending(user_key=USER.key)
        await store.work.pending()
        await store.sessions.with_expired_turns(before=NOON)
        await store.sessions.ended(before=NOON)
        await store.work.mark_projected(key, through=58)
        await store.segments.of(key, now=NOON)
        await store.work.pending_since()
        await store.work.pending_reruns(key, through=58, limit=10)
        await store.work.poisoned()
        await store.work.mark_dense_pending(reset=False)
    database = full_mongo.client[urlsplit(mongo_url).path[1:]]
    asked = list(commands.sent)
    assert len(asked) >= 15
    for find in asked:
        plan = database.command("explain", find, verbosity="executionStats")
        assert "COLLSCAN" not in str(plan["queryPlanner"]), find
        assert "IXSCAN" in str(plan["queryPlanner"]) or "IDHACK" in str(plan), find
        stats = plan.get("executionStats", {})
        if "totalDocsExamined" in stats:
            assert stats["totalDocsExamined"] <= stats["nReturned"] + 1, find


async def test_no_acknowledged_turn_is_lost_when_the_server_is_killed(
    mongo: Mongo, mongo_url: str, rng: random.Random
) -> None:
    """R2: `kill -9` of the store under load."""
    kill_and_restart = mongo.kill_and_restart
    if kill_and_restart is None:
        pytest.skip(f"{mongo.name} cannot be killed here: set STRATA_TEST_MONGO_RESTART")
    acknowledged: dict[str, str] = {}
    stopping = asyncio.Event()

    async def write(store: MongoStore, name: str) -> None:
        seq = 1
        while not stopping.is_set():
            new = turn(f"{name} {seq}", "answer", seq=seq, session=name)
            try:
                if await store.turns.append([new]):
                    acknowledged[new.id] = new.session_key
                seq += 2  # taken: the answer was lost, the turn was not
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    async with opened(mongo_url) as store:
        writers = [asyncio.create_task(write(store, f"s{n}")) for n in range(8)]
        for _ in range(3):
            before = len(acknowledged)
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            await asyncio.to_thread(kill_and_restart)
            for _ in range(600):
                if len(acknowledged) > before + 50:
                    break
                await asyncio.sleep(0.05)
            assert len(acknowledged) > before + 50, "it goes on by itself"
        stopping.set()
        await asyncio.gather(*writers)
        stored = set()
        for key in set(acknowledged.values()):
            after = 0
            while page := await store.turns.range(key, after=after, limit=200):
                stored |= {one.id for one in page}
                after = page[-1].last_seq
    assert set(acknowledged) - stored == set()
