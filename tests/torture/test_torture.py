"""R1, R3, R4, R6, R7, R9, R11: the scenarios of `make torture` with few rounds, and the control."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.mongo import Mongo
from servers.proxy import Proxy
from system.process import Model, Qdrant

from torture.away import index_away
from torture.cluster import Cluster, on_mongo, on_sqlite, on_tutorial
from torture.cuts import cut
from torture.scenarios import Row, at_once, awakened, killed

FEW = {"users": 2, "sessions": 2, "tabs": 2}


def check(row: Row) -> None:
    assert row.verdict.acknowledged > 0, row
    assert not row.verdict.wrong, row.verdict.told()


@pytest.fixture
def sqlite(tmp_path: Path, model: Model, rng: random.Random) -> Iterator[Cluster]:
    with on_sqlite(tmp_path, model, rng) as cluster:
        yield cluster


@pytest.fixture
def shared(
    tmp_path: Path, model: Model, rng: random.Random, mongo: Mongo, qdrant_process: Qdrant,
    to_qdrant: Proxy,
) -> Iterator[Cluster]:  # fmt: skip
    """Two processes on one store; the index is behind the proxy."""
    index = {"url": f"http://127.0.0.1:{to_qdrant.port}"}
    with on_mongo(
        tmp_path, model, rng, mongo=mongo, qdrant=qdrant_process, processes=2, index=index
    ) as cluster:
        yield cluster


async def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_on_sqlite(
    sqlite: Cluster, model: Model, rng: random.Random
) -> None:
    """R1, R3, R6, R7, R9: all at once; under kill -9 with clients that retry and with clients
    that never do; answers in pieces."""
    check(await at_once(sqlite, model, rng, turns=4, users=3, sessions=2))
    check(await killed(sqlite, model, rng, kills=2, **FEW))
    check(await killed(sqlite, model, rng, kills=2, retries=False, **FEW))
    check(await cut(sqlite, model, rng, rounds=2, sessions=6))


async def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_on_a_shared_store(
    shared: Cluster, model: Model, rng: random.Random, to_qdrant: Proxy
) -> None:
    """R1, R4, R6, R7, R9, R11 with two processes: all at once; kill -9 of either; one that stands
    still beyond its lease and wakes; answers in pieces from both; the index away under load."""
    check(await index_away(shared, model, rng, proxy=to_qdrant, seconds=4, **FEW))
    check(await at_once(shared, model, rng, turns=4, users=3, sessions=2))
    check(await killed(shared, model, rng, kills=2, **FEW))
    check(await awakened(shared, model, rng, rounds=1, sessions=4))
    check(await cut(shared, model, rng, rounds=2, sessions=6))


@pytest.mark.parametrize("file", [False, True], ids=["list", "file"])
async def test_the_torture_sees_what_the_usual_tutorial_loses(
    tmp_path: Path, model: Model, rng: random.Random, *, file: bool
) -> None:
    """The control: a history that is read, added to and written back loses turns when several
    are under way, and with the process; the same scenarios must see both."""
    with on_tutorial(tmp_path, model, rng, file=file) as cluster:
        row = await at_once(cluster, model, rng, turns=4, retries=False, **FEW)
        assert row.verdict.lost, "two tabs of one session: the later list overwrites the earlier"
        row = await killed(cluster, model, rng, kills=2, retries=False, tabs=1)
        assert row.verdict.lost, "what stood in no file, or was not written yet"
