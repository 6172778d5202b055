"""One service over the fake model for all API tests; nothing said to it may stand in its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

import httpx
import pytest
from system.process import Model, Service, serving
from waiting import wait_for

# Every user, session and message of these tests carries it: S7.
CANARY = "kumquat"

_numbers = count(1)


@pytest.fixture(scope="session")
def service(model_process: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Defaults but for the model and a quick projector. Its log is searched at the end."""
    with serving(
        tmp_path_factory.mktemp("api"),
        fake=model_process,
        projector={"interval": "50ms"},
        recall={"deadline": "2s"},
    ) as service:
        with service.sync_client() as client:
            wait_for(lambda: client.get("/health/ready").json()["embedding"]["status"] == "ok")
        yield service
        service.terminate()
        log = service.log.read_text()
        assert len(log) > 10_000
        leaks = [line for line in log.splitlines() if re.search(CANARY, line, re.IGNORECASE)]
        assert not leaks, f"S7: {len(leaks)} log lines hold what a user said: {leaks[:3]}"
        crashes = [line for line in log.splitlines() if '"status": 500' in line]
        assert not crashes, f"{len(crashes)} requests ended in a crash: {crashes[:5]}"


@pytest.fixture
def user() -> str:
    return f"{CANARY}-user-{next(_numbers)}"


@pytest.fixture
def client(service: Service, model: Model, user: str) -> Iterator[httpx.Client]:
    """Talks as a user of its own."""
    with service.sync_client(user) as client:
        yield client


@pytest.fixture
def other(service: Service) -> Iterator[httpx.Client]:
    """Another user."""
    with service.sync_client(f"{CANARY}-other-{next(_numbers)}") as client:
        yield client


@pytest.fixture
def session() -> str:
    return f"{CANARY}.session_{next(_numbers)}:a-Z"
