"""The processes that system tests share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.mongo import Mongo

from system.process import Model, Qdrant, Service, serving

# Without an embedding model a service is up in less than a second.
BY_WORDS = {"provider": "none"}
PAIR_DETACH = "3s"

_sessions = count(1)


@pytest.fixture(scope="session")
def plain(model_process: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over the fake model; recall is by words."""
    settings = {"model": {"max_retries": 0}, "embedding": BY_WORDS}
    folder = tmp_path_factory.mktemp("plain")
    with serving(folder, fake=model_process, **settings) as service:
        yield service


@pytest.fixture
async def client(plain: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to `plain` as a user of its own."""
    async with plain.client(f"user{next(_sessions)}") as client:
        yield client


@pytest.fixture
def session() -> str:
    """A session id that no other test uses."""
    return f"session{next(_sessions)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="session")
def pair(
    mongo: Mongo,
    qdrant_process: Qdrant,
    model_process: Model,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Service]]:
    """Two processes over the same stores, for tests that leave them running."""
    url, folder = mongo.database(), tmp_path_factory.mktemp("pair")
    settings = {
        "store": {"url": url},
        "index": {"url": qdrant_process.url, "collection": f"pair-{os.getpid()}"},
        "embedding": BY_WORDS,
        "session": {"detach": PAIR_DETACH},
    }
    with (
        serving(folder / "1", fake=model_process, **settings) as one,
        serving(folder / "2", fake=model_process, **settings) as two,
    ):
        yield one, two
    mongo.drop(url)


@pytest.fixture
async def both(
    pair: tuple[Service, Service],
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Talk to the two of `pair` as one user of their own."""
    user = f"user{next(_sessions)}"
    async with pair[0].client(user) as one, pair[1].client(user) as two:
        yield one, two


@pytest.fixture
def shared(mongo: Mongo, mongo_url: str, qdrant_process: Qdrant) -> dict[str, dict[str, Any]]:
    """The configuration of stores that several processes can use, with nothing in them."""
    return {
        "store": {"url": mongo_url},
        "index": {"url": qdrant_process.url, "collection": f"c{next(_sessions)}-{os.getpid()}"},
        "embedding": dict(BY_WORDS),
        "projector": {"interval": "100ms"},
    }
