"""What every test shares: seeds that are printed, the exact counter, a fast configuration."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
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
