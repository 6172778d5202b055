"""The memory of a measurement: in stores of its own, which are deleted after it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from memory import MemoryConfig, Strata, open_memory

TENANT = "evals"


@asynccontextmanager
async def sandbox(config: MemoryConfig) -> AsyncIterator[Strata]:
    """`config` over embedded stores in a temporary folder, with its model loaded (or failed).

    Nothing expires. No work runs in the background: `caught_up()` does it.
    """
    with tempfile.TemporaryDirectory(prefix="strata-evals-") as folder:
        async with open_memory(_at(config, Path(folder)), background=False) as strata:
            await strata.embeddings_loaded.wait()
            yield strata


def _at(config: MemoryConfig, folder: Path) -> MemoryConfig:
    return config.model_copy(
        update={
            "store": config.store.model_copy(update={"url": f"sqlite:///{folder}/strata.db"}),
            "index": config.index.model_copy(update={"url": f"edge:///{folder}/index"}),
            "ttl": config.ttl.model_copy(update={"memory": math.inf, "session": math.inf}),
        }
    )


def embedding_of(strata: Strata) -> str:
    """State and identity of the embedding model, or why there is none."""
    model = strata.embeddings
    return f"{model.state} {model.identity or model.reason}".strip()
