from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from memory import Incoming, TurnRequest, User
from memory.errors import EraseUnfinished, IndexUnavailable, NotFound, StoreUnavailable, TurnLost
from memory.locks import SessionLocks
from memory.models import now, session_key
from memory.retention.erasing import Eraser
from memory.stores.base import Store
from unit.builders import (
    SESSION,
    USER,
    IndexAround,
    LateModel,
    LetterEmbeddings,
    StoreAround,
    assembled,
    embedded_bytes,
    late_write_is_lost,
    opened,
    say,
)

KEY = session_key(USER.key, SESSION)
OTHER = User("acme", "oskar")
SMALL = {"context_tokens": 900, "window_tokens": 300, "summary_tokens": 120, "recall_tokens": 100,
         "facts_tokens": 0}  # fmt: skip


async def test_an_erased_session_is_gone_from_everywhere_and_others_are_untouched(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        assert strata.index is not None
        for n in range(6):
            await say(strata, f"The Canary {n} sings of Xylophons. " * 9, "A canary! " * 9,
                      session="canary-1", metadata={"note": "canary"})  # fmt: skip
        await strata.memory.record(
            USER, "canary-1", [Incoming(role="user", content="hm", speaker="Canarius", id="canar")]
        )
        await say(strata, "My dog is called Bruno.")
        await say(strata, "My dog is called Bruno.", user=OTHER, session="canary-1")
        await strata.caught_up()
        await strata.history.change(
            USER, "canary-1", {"title": "Canaries", "metadata": {"a": "canary"}}
        )
        assert await strata.history.delete_session(USER, "canary-1") == 7
        with pytest.raises(NotFound):
            await strata.history.session(USER, "canary-1")
        key = session_key(USER.key, "canary-1")
        assert await strata.store.sessions.get(key) is None
        assert await strata.store.turns.range(key, after=0, limit=9) == []
        assert await strata.index.count(USER.key) == 2
        assert await strata.index.count(OTHER.key) == 2
        found = await strata.history.memories(USER, query="canary xylophons dog", limit=9)
        assert [i.message.content for i in found.items if i.message.role == "user"] == [
            "My dog is called Bruno."
        ]
        assert await strata.history.delete_session(OTHER, "canary-1") == 1
        assert b"canar" not in embedded_bytes(tmp_path).lower()
    assert b"canar" not in embedded_bytes(tmp_path).lower()


async def test_a_session_of_that_name_begins_from_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "The Canary sings.")
        await strata.caught_up()
        await strata.history.delete_session(USER, SESSION)
        again = await say(strata, "Hello.")
        await strata.caught_up()
        assert (again.seq, again.id) == (1, f"{KEY}:0000000001")
        session = await strata.history.session(USER, SESSION)
        assert (session.first_seq, session.last_seq, session.title) == (1, 2, "Hello.")
        assert strata.index is not None
        assert await strata.index.count() == 2


async def test_a_session_that_was_never_projected_can_be_erased(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "The Canary sings.")
        assert await strata.history.delete_session(USER, SESSION) == 1
        await strata.caught_up()
        assert await strata.store.sessions.get(KEY) is None
        assert strata.index is not None
        assert await strata.index.count() == 0


async def test_somebody_elses_session_cannot_be_erased(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "My dog is called Bruno.")
        with pytest.raises(NotFound):
            await strata.history.delete_session(OTHER, SESSION)
        assert len(await strata.store.turns.range(KEY, after=0, limit=9)) == 1


async def test_an_answer_in_flight_is_lost_and_brings_nothing_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        accepted = await strata.memory.begin(
            TurnRequest(user=USER, session_id=SESSION, question="The Canary?")
        )
        await strata.history.delete_session(USER, SESSION)
        with pytest.raises(TurnLost):
            await accepted.flush("A canary")
        with pytest.raises(TurnLost):
            await accepted.finish("A canary", status="done")
        await strata.caught_up()
        assert await strata.store.turns.range(KEY, after=0, limit=9) == []
        assert b"canary" not in embedded_bytes(tmp_path).lower()
        assert (await say(strata, "Hello.")).seq == 1


async def test_an_answer_in_flight_does_not_end_in_the_next_session_of_that_name(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as strata:
        old = await strata.memory.begin(
            TurnRequest(user=USER, session_id=SESSION, question="The Canary?")
        )
        await strata.history.delete_session(USER, SESSION)
        old.abandon()
        new = await strata.memory.begin(
            TurnRequest(user=USER, session_id=SESSION, question="Hello.")
        )
        assert new.turn.id == old.turn.id
        assert await late_write_is_lost(strata, old)
        await new.finish("Hi.", status="done")
        stored = await strata.store.turns.get(new.turn.id, now=now())
        assert stored is not None
        assert stored.assistant is not None
        assert stored.assistant.content == "Hi."


class Held(LetterEmbeddings):
    """Embeds when it is let go; says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.begun.set()
        assert self.go.wait(10)
        return super().embed_documents(texts)


async def test_indexing_in_flight_brings_nothing_back(tmp_path: Path) -> None:
    held = Held()
    model = LateModel(held)
    model.release.set()
    async with assembled(tmp_path, model=model) as strata:
        await strata.embeddings_loaded.wait()
        await say(strata, "The Canary sings.")
        indexing = asyncio.create_task(strata.projector.run_once())
        assert await asyncio.to_thread(held.begun.wait, 5)
        erasing = asyncio.create_task(strata.history.delete_session(USER, SESSION))
        await asyncio.sleep(0)
        held.go.set()
        assert await erasing == 1
        await indexing
        await strata.caught_up()
        assert strata.index is not None
        assert await strata.index.count() == 0
        assert await strata.store.sessions.get(KEY) is None


class Dying(StoreAround):
    """A store whose `step`-th write of an erase never happens."""

    def __init__(self, inner: Store, step: int) -> None:
        super().__init__(inner)
        self._left = step

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        if name in ("sessions.delete", "sessions.delete_if_empty"):
            self._left -= 1
            if self._left < 0:
                raise StoreUnavailable("killed")
        return await method(*given, **named)


@pytest.mark.parametrize("step", [0, 1])
async def test_an_erase_that_dies_on_its_way_hides_all_and_is_finished_by_the_sweeper(
    tmp_path: Path, step: int
) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "The Canary sings.")
        await strata.caught_up()
        dying: Any = Dying(strata.store, step)
        erasing = Eraser(
            store=dying, index=strata.index, projector=strata.projector, locks=SessionLocks()
        )
        with pytest.raises(StoreUnavailable):
            await erasing.erase_session(KEY)
        with pytest.raises(NotFound):
            await strata.history.session(USER, SESSION)
        await strata.sweeper.sweep()
        assert (await strata.history.memories(USER, query=None, limit=9)).items == []
        assert strata.index is not None
        assert await strata.index.count() == 0
        assert await strata.store.sessions.get(KEY) is None
        assert b"canary" not in embedded_bytes(tmp_path).lower()


class Away(IndexAround):
    """An index that does not answer until it is back."""

    back = False

    async def delete_session(self, *, user: str, session: str) -> None:
        if not self.back:
            raise IndexUnavailable("away")
        await self.inner.delete_session(user=user, session=session)


@pytest.mark.parametrize("memory", ["session", "365d"])
async def test_what_is_said_after_an_erase_is_kept_though_the_index_was_away(
    tmp_path: Path, memory: str
) -> None:
    """R1: the sweeper finishes the erase later, and takes nothing that came after it."""
    async with opened(tmp_path, budget=SMALL, ttl={"memory": memory}) as strata:
        assert strata.index is not None
        away = Away(strata.index)
        shared: Any = {"store": strata.store, "index": away, "projector": strata.projector,
                       "locks": SessionLocks()}  # fmt: skip
        erasing = Eraser(**shared)
        for n in range(6):
            await say(strata, f"The Canary {n} sings of Xylophons. " * 9, "A canary! " * 9)
        await strata.caught_up()
        await strata.history.change(USER, SESSION, {"title": "Canaries", "metadata": {"a": "b"}})
        with pytest.raises(EraseUnfinished, match=r"away; it is .* nothing is left to do"):
            await erasing.erase_session(KEY)
        with pytest.raises(NotFound):
            await strata.history.session(USER, SESSION)
        assert (await strata.history.memories(USER, query="canary", limit=9)).items == []
        said = await say(strata, "Hello again.")
        assert (await strata.history.turn(USER, said.id)).seq == 13
        await strata.caught_up()
        with pytest.raises(EraseUnfinished):
            await erasing.finish(KEY)
        for _ in range(2):
            session = await strata.history.session(USER, SESSION)
            assert (session.title, session.metadata) == ("Hello again.", {})
            assert session.summary.text == ""
            assert session.first_seq == said.seq == 13
            assert [s.key for s in (await strata.history.sessions(USER, before=None, limit=9))[0]]
            messages, more = await strata.history.messages(USER, SESSION, before=None, limit=99)
            assert [m.seq for m in messages] == [13, 14]
            assert more is None
            away.back = True
            assert await erasing.finish(KEY) == 0
            await strata.caught_up()
        assert await strata.index.count() == 2
        found = await strata.history.memories(USER, query="hello", limit=9)
        assert "Hello again." in {item.message.content for item in found.items}
        assert await strata.sweeper.sweep() == 0
        assert [t.seq for t in await strata.store.turns.range(KEY, after=0, limit=9)] == [13]
        assert b"canar" not in embedded_bytes(tmp_path).lower()
