"""Workers share the sessions of one MongoDB: who projects or erases one claims it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from unit.builders import SESSION, USER, counter
from waiting import eventually

from memory import MemoryConfig, Strata, TurnRequest
from memory.embeddings import DenseModel
from memory.indexes import make_index
from memory.models import now, session_key
from memory.stores.mongo.store import MongoStore
from memory.strata import put_together

KEY = session_key(USER.key, SESSION)
# Long enough that it has not ended before it is met.
CLAIM = timedelta(seconds=2)


@asynccontextmanager
async def opened(url: str, folder: Path, lease: str = "10s") -> AsyncIterator[Strata]:
    """A memory in which nothing runs by itself."""
    config = MemoryConfig.model_validate(
        {
            "index": {"url": f"edge:///{folder}/index"},
            "embedding": {"provider": "none"},
            "session": {"lease": lease},
        }
    )
    store = MongoStore(url, timeout_seconds=5.0, purge_grace_seconds=86400.0)
    index = make_index(config)
    assert index is not None
    await store.open()
    await index.open()
    try:
        yield put_together(
            config, store=store, index=index, embeddings=DenseModel(config.embedding),
            counter=counter(), summarizer=None,
        )  # fmt: skip
    finally:
        await index.close()
        await store.close()


async def say(strata: Strata, question: str) -> None:
    accepted = await strata.memory.begin(
        TurnRequest(user=USER, session_id=SESSION, question=question)
    )
    await accepted.context()
    await accepted.finish("I see.", status="done")


async def test_a_session_that_another_worker_projects_is_left_to_it(
    mongo_url: str, tmp_path: Path
) -> None:
    async with opened(mongo_url, tmp_path) as strata:
        await say(strata, "My dog is called Biscuit.")
        await strata.projector.caught_up()
        await say(strata, "My cat is called Shortbread.")
        ends = now() + CLAIM
        assert await strata.store.sessions.claim(KEY, worker="other", until=ends, now=now())
        assert not await strata.projector.run_once()
        assert await strata.store.work.pending() == [KEY]
        # Its worker has died: the claim ends, and the work is found again.
        await eventually(strata.projector.run_once)
        await strata.projector.caught_up()
        assert await strata.store.work.pending() == []


async def test_a_session_is_gone_only_when_nobody_writes_its_points_any_more(
    mongo_url: str, tmp_path: Path
) -> None:
    async with opened(mongo_url, tmp_path) as strata:
        await say(strata, "My dog is called Biscuit.")
        await strata.projector.caught_up()
        ends = now() + CLAIM
        assert await strata.store.sessions.claim(KEY, worker="other", until=ends, now=now())
        erasing = asyncio.create_task(strata.history.delete_session(USER, SESSION))
        await asyncio.sleep(0)

        async def hidden() -> bool:
            return (await strata.history.sessions(USER, limit=9, before=None))[0] == []

        await eventually(hidden)
        assert not erasing.done()
        await erasing
        assert now() >= ends
        assert await strata.store.sessions.get(KEY) is None
        assert strata.index is not None
        assert await strata.index.count(USER.key) == 0
