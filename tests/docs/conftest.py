"""The server stores of tests/system, and a service that all examples may talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from system.conftest import shared
from system.process import Service, serving
from waiting import wait_for

__all__ = ["shared"]


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`serve` with its defaults, but a patient recall, and its embedding model loaded."""
    with serving(tmp_path_factory.mktemp("docs"), recall={"deadline": "10s"}) as service:
        with service.sync_client() as client:
            wait_for(
                lambda: client.get("/health/ready").json()["embedding"]["status"] == "ok",
                what="embedding model loaded",
            )
        yield service
