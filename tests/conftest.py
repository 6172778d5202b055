"""What every test shares: seeds that are printed, the exact counter, a fast configuration."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from servers.mongo import Mongo, mongo_server
from servers.proxy import Proxy
from servers.qdrant import RUN, summary_lines
from system.process import Model, Qdrant, modelling
from unit.builders import counter as exact
from unit.builders import opened

from memory import Strata
from memory.tokens import TiktokenCounter

settings.register_profile(
    "strata",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("strata")

MONGO_USED = pytest.StashKey[str]()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers whose seed stands in the output of a failing test (STRATA_SEED repeats it)."""
    seed = int(os.environ.get("STRATA_SEED") or random.SystemRandom().randrange(2**32))
    print(f"{request.node.name}: STRATA_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def counter() -> TiktokenCounter:
    return exact()


@pytest.fixture
async def strata(tmp_path: Path) -> AsyncIterator[Strata]:
    """A memory on real files, without an embedding model, where nothing runs by itself."""
    async with opened(tmp_path) as memory:
        yield memory


@pytest.fixture(scope="session")
def model_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with modelling(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def model(model_process: Model) -> Model:
    """The fake model server, answering normally, with an empty log."""
    model_process.forget()
    return model_process


@pytest.fixture(scope="session")
def qdrant_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qdrant]:
    """The Qdrant server of the tests that do not break it."""
    qdrant = Qdrant(tmp_path_factory.mktemp("qdrant"))
    yield qdrant
    qdrant.kill()


@pytest.fixture
def to_qdrant(qdrant_process: Qdrant) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", qdrant_process.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def mongo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mongo]:
    """The MongoDB server of this run; a test that wants one is skipped where there is none."""
    with mongo_server(tmp_path_factory.mktemp("mongo")) as found:
        if isinstance(found, str):
            request.config.stash[MONGO_USED] = f"NOT TESTED ({found})"
            pytest.skip(f"no MongoDB: {found}")
        kind = "a full server" if found.full else "not a full server"
        missing = f"; not shown: {', '.join(found.not_shown)}" if found.not_shown else ""
        request.config.stash[MONGO_USED] = f"{found.name} {found.version}, {kind}{missing}"
        yield found


@pytest.fixture
def full_mongo(mongo: Mongo) -> Mongo:
    """For what only a server with all of MongoDB's abilities can show."""
    if not mongo.full:
        pytest.skip(f"{mongo.name} is not a full MongoDB: set STRATA_TEST_MONGO_URL")
    return mongo


@pytest.fixture
def mongo_url(mongo: Mongo) -> Iterator[str]:
    """A database of this test's own, dropped afterwards."""
    url = mongo.database()
    yield url
    mongo.drop(url)


@pytest.fixture(params=["sqlite", "mongo"])
def stored_in(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The configuration of a store: the embedded one, or the one of several workers."""
    if request.param == "sqlite":
        return {"url": f"sqlite:///{tmp_path}/strata.db"}
    return {"url": request.getfixturevalue("mongo_url")}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist says which servers it has used."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["mongo"] = session.config.stash.get(MONGO_USED, "")
        output["qdrant"] = sorted(RUN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    RUN.update(output.get("qdrant", ()))
    if output.get("mongo"):
        node.config.stash[MONGO_USED] = output["mongo"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    used = terminalreporter.config.stash.get(MONGO_USED, "NOT TESTED (no test asked for it)")
    for line in (f"MongoDB: {used}", *summary_lines()):
        terminalreporter.write_line(line)
