from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from waiting import PATIENCE_SECONDS, eventually

import memory
from memory import Incoming, Strata, TurnRequest
from memory.embeddings import DenseModel, SparseVector, sparse_query
from memory.errors import EmbeddingUnavailable, IndexUnavailable
from memory.indexes.base import Point
from memory.log.transitions import answered
from memory.models import Message, Session, Turn, now, session_key, turn_of
from memory.projections.backoff import BACKOFF_SECONDS, JITTER
from memory.projections.index import BATCH_TURNS
from memory.projections.projector import FAILURES
from memory.stores.base import PAGE
from memory.text import cut
from unit.builders import (
    SESSION,
    USER,
    IndexAround,
    LateModel,
    LetterEmbeddings,
    assembled,
    config,
    embedded_bytes,
    opened,
    say,
)

KEY = session_key(USER.key, SESSION)
ROOT = Path(memory.__file__).parent.parent


async def tell(strata: Strata, *texts: str, session: str = SESSION) -> None:
    messages = [Incoming(role="user", content=text) for text in texts]
    await strata.memory.record(USER, session, messages)


async def stored(strata: Strata, key: str = KEY) -> Session:
    session = await strata.store.sessions.get(key)
    assert session is not None
    return session


async def found_by_words(strata: Strata, words: str) -> set[str]:
    """The texts of the messages whose points are found by these words."""
    assert strata.index is not None
    hits = await strata.index.search(
        user=USER.key, sparse=sparse_query(words), dense=None, limit=500, now=now()
    )
    return await _texts(strata, [hit.payload["message"] for hit in hits.lexical])


async def found_by_meaning(strata: Strata) -> set[str]:
    """The texts of the messages that have dense vectors."""
    assert strata.index is not None
    hits = await strata.index.search(
        user=USER.key, sparse=SparseVector([], []), dense=[1.0] * 8, limit=500, now=now()
    )
    return await _texts(strata, [hit.payload["message"] for hit in hits.dense])


async def _texts(strata: Strata, ids: Sequence[str]) -> set[str]:
    texts: dict[str, Message] = {}
    for key in {i.rpartition(":")[0] for i in ids}:
        for turn in await strata.store.turns.range(key, after=0, limit=9999):
            texts.update({m.id: m for m in turn.messages})
    return {texts[i].content for i in ids}


async def points(strata: Strata) -> int:
    assert strata.index is not None
    return await strata.index.count(USER.key)


# --- points ----------------------------------------------------------------------------------


async def test_every_passage_of_every_message_becomes_a_point(strata: Strata) -> None:
    long = "We walked along the river for hours and talked. " * 40
    await say(strata, "My dog is called Bruno.", long)
    accepted = await strata.memory.begin(
        TurnRequest(user=USER, session_id=SESSION, question="hello")
    )
    await accepted.finish("", status="failed")
    await tell(strata, "one", "two")
    await strata.caught_up()
    assert await points(strata) == 1 + len(cut(long)) + 1 + 2
    session = await stored(strata)
    assert session.lexical_through == session.last_seq == 6
    assert await strata.store.work.pending() == []
    assert await strata.projector.pending() == 0


async def test_the_index_holds_no_text_no_name_and_no_session_id(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await strata.memory.record(
            USER,
            "canary-session",
            [Incoming(role="user", content="The canaryword sings.", speaker="Canaryname")],
        )
        await strata.caught_up()
        assert await found_by_words(strata, "canaryword") == {"The canaryword sings."}
    raw = embedded_bytes(tmp_path / "index").lower()
    assert b"canary" not in raw
    assert b"canary" in embedded_bytes(tmp_path).lower(), "the store does hold it"


async def test_a_passage_is_found_by_the_words_of_its_neighbours_too(strata: Strata) -> None:
    await tell(strata, "Do you have a pet?", "Yes, Bruno.", "How nice!", "Thanks.")
    await strata.caught_up()
    assert await found_by_words(strata, "pet") == {"Do you have a pet?", "Yes, Bruno."}
    assert await found_by_words(strata, "Bruno") == {
        "Do you have a pet?", "Yes, Bruno.", "How nice!",
    }  # fmt: skip


async def test_the_next_message_reaches_the_passage_before_it_across_batches(
    strata: Strata,
) -> None:
    await tell(strata, "Do you have a pet?")
    await strata.caught_up()
    await tell(strata, "Yes, Bruno.")
    await strata.caught_up()
    assert await found_by_words(strata, "Bruno") == {"Do you have a pet?", "Yes, Bruno."}
    numbers = [f"This is number{n}." for n in range(BATCH_TURNS * 2 + 10)]
    await tell(strata, *numbers, session="long")
    await strata.caught_up()
    for n in range(1, len(numbers) - 1, 33):
        assert await found_by_words(strata, f"number{n}") == set(numbers[n - 1 : n + 2])
    assert await points(strata) == len(numbers) + 2


async def test_messages_of_another_session_are_no_neighbours(strata: Strata) -> None:
    await tell(strata, "Do you have a pet?", session="one")
    await tell(strata, "Yes, Bruno.", session="two")
    await strata.caught_up()
    assert await found_by_words(strata, "Bruno") == {"Yes, Bruno."}


async def test_a_running_turn_waits_for_its_end(strata: Strata) -> None:
    await tell(strata, "before")
    accepted = await strata.memory.begin(
        TurnRequest(user=USER, session_id=SESSION, question="My dog is called Bruno.")
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        await strata.caught_up()
    assert await points(strata) == 1
    assert await strata.store.work.pending() == [KEY]
    await accepted.finish("Nice.", status="done")
    await strata.caught_up()
    assert await points(strata) == 3
    assert await strata.store.work.pending() == []


async def test_many_running_turns_do_not_hold_up_the_finished_ones(strata: Strata) -> None:
    for n in range(PAGE):
        ask = TurnRequest(user=USER, session_id=f"running {n}", question="hello", recall="none")
        await strata.memory.begin(ask)
    await tell(strata, "My dog is called Bruno.")
    assert await strata.projector.pending() == 1
    await strata.caught_up()
    assert await points(strata) == 1
    assert await strata.projector.pending() == 0


# --- the session document --------------------------------------------------------------------


async def test_a_session_is_told_by_its_turns(strata: Strata) -> None:
    first = await say(strata, "  My dog\n is called   Bruno. " + "And so on. " * 20)
    last = await say(strata, "Thanks")
    session = await strata.sessions.session(KEY)
    assert session is not None
    assert session.title == ("My dog is called Bruno. " + "And so on. " * 20)[:60]
    assert (session.first_seq, session.last_seq) == (1, 4)
    assert session.created_at == first.recorded_at
    assert session.updated_at == last.recorded_at
    assert session == await strata.store.sessions.get(KEY)
    assert await strata.sessions.session("nobody.nothing") is None


# --- crashes ---------------------------------------------------------------------------------

CRASH = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from unit.builders import SESSION, USER, opened, say
from memory import TurnRequest

async def main():
    async with opened(Path(sys.argv[1])) as strata:
        for n in range(3):
            await say(strata, f"question {n}", f"answer {n}")
        if sys.argv[2] == "committed":
            await strata.caught_up()
        await say(strata, "question 3", "answer 3")
        await strata.projector.run_once()
        asked = TurnRequest(user=USER, session_id=SESSION, question="last")
        accepted = await strata.memory.begin(asked)
        await accepted.flush("half")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("before", ["committed", "nothing"])
async def test_after_a_crash_everything_is_projected_once(tmp_path: Path, before: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASH, str(tmp_path), before,
        cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await asyncio.wait_for(child.communicate(), PATIENCE_SECONDS)
    assert child.returncode == -signal.SIGKILL, errors.decode()
    for _ in range(2):
        async with opened(tmp_path) as strata:
            turns = await strata.store.turns.range(KEY, after=0, limit=99)
            assert [t.status for t in turns] == ["done"] * 4 + ["interrupted"]
            assert turns[-1].messages[-1].content == "half"
            await strata.caught_up()
            assert await points(strata) == 10
            assert await strata.store.work.pending() == []
            assert len(await found_by_words(strata, "answer")) == 8 + 2 - 1


async def test_an_index_that_was_lost_is_made_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await tell(strata, *(f"My dog number {n}" for n in range(5)))
        await strata.caught_up()
    for leftover in (tmp_path / "index", tmp_path / "index.model.json"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    async with opened(tmp_path) as strata:
        assert await strata.store.work.pending() == [KEY]
        await strata.caught_up()
        assert await points(strata) == 5
        assert len(await found_by_words(strata, "dog")) == 5


# --- an index that is away -------------------------------------------------------------------


class Flaky(IndexAround):
    away = False

    async def upsert(self, points: Sequence[Point]) -> None:
        if self.away:
            raise IndexUnavailable("away")
        await self.inner.upsert(points)

    async def flush(self) -> None:
        if self.away:
            raise IndexUnavailable("away")
        await self.inner.flush()


class Away(IndexAround):
    """Refuses everything while it is away, and whenever it does not answer."""

    away = False
    answers: Callable[[], bool] = staticmethod(lambda: True)

    def _there(self) -> None:
        if self.away or not self.answers():
            raise IndexUnavailable("away")

    async def upsert(self, points: Sequence[Point]) -> None:
        self._there()
        await self.inner.upsert(points)

    async def update_sparse(self, vectors: Sequence[tuple[str, SparseVector]]) -> None:
        self._there()
        await self.inner.update_sparse(vectors)

    async def delete_messages(self, *, user: str, messages: Sequence[str]) -> None:
        self._there()
        await self.inner.delete_messages(user=user, messages=messages)


async def test_what_was_said_while_the_index_was_away_is_caught_up(tmp_path: Path) -> None:
    async with assembled(tmp_path, model=None, around=Flaky) as strata:
        flaky = strata.index
        assert isinstance(flaky, Flaky)
        flaky.away = True
        await tell(strata, "My dog is called Bruno.")
        assert not await strata.projector.run_once()
        with pytest.raises(IndexUnavailable):
            await strata.caught_up()
        assert await strata.store.work.pending() == [KEY]
        assert await strata.projector.pending() == 1
        assert (await stored(strata)).title == "My dog is called Bruno."
        flaky.away = False
        assert not await strata.projector.run_once(), "it is tried again later"
        strata.projector.changes.note(KEY)
        assert await strata.projector.run_once()
        await strata.caught_up()
        assert await points(strata) == 1
        assert await strata.store.work.pending() == []


async def test_a_flush_that_fails_moves_no_watermark(tmp_path: Path) -> None:
    async with assembled(tmp_path, around=Flaky) as strata:
        flaky = strata.index
        assert isinstance(flaky, Flaky)
        await tell(strata, "My dog is called Bruno.")
        await strata.projector.run_once()
        flaky.away = True
        with pytest.raises(IndexUnavailable):
            await strata.projector.commit()
        assert (await stored(strata)).lexical_through == 0
        assert await strata.store.work.pending() == [KEY]
        flaky.away = False
        await strata.projector.commit()
        assert (await stored(strata)).lexical_through == 1
        assert await strata.store.work.pending() == []


async def test_one_session_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class Picky(IndexAround):
        async def upsert(self, points: Sequence[Point]) -> None:
            if any(p.payload["session"] == KEY for p in points):
                raise IndexUnavailable("not this one")
            await self.inner.upsert(points)

    async with assembled(tmp_path, around=Picky) as strata:
        await tell(strata, "one")
        await tell(strata, "two", session="other")
        assert await strata.projector.run_once()
        assert await found_by_words(strata, "two") == {"two"}
        await strata.projector.run_once()
        assert await strata.projector.pending() == 1


# --- an embedding model that comes late, changes, or is away -----------------------------------


def preview(strata: Strata) -> asyncio.Task[memory.models.Context]:
    ask = TurnRequest(user=USER, session_id="new", question="What is my dog called?")
    return asyncio.create_task(strata.memory.preview(ask))


async def test_words_find_until_the_model_is_loaded_and_dense_vectors_follow(
    tmp_path: Path,
) -> None:
    model = LateModel()
    async with assembled(tmp_path, model=model) as strata:
        await tell(strata, "My dog is called Bruno.", "We live in Zürich.")
        await strata.projector.caught_up()
        context = await preview(strata)
        assert "Bruno" in context.recall_block
        assert context.receipt.degraded == ("embedding",)
        assert context.receipt.layers.recall.items[0].dense_rank is None
        session = await stored(strata)
        assert (session.lexical_through, session.dense_through) == (2, 0)
        assert await strata.store.work.pending() == []
        await tell(strata, "Not projected yet.", session="other")

        model.release.set()
        await strata.caught_up()
        assert await found_by_meaning(strata) == {
            "My dog is called Bruno.", "We live in Zürich.", "Not projected yet.",
        }  # fmt: skip
        assert (await stored(strata)).dense_through == 2
        context = await preview(strata)
        assert context.receipt.degraded == ()
        assert context.receipt.layers.recall.items[0].dense_rank is not None
        assert await points(strata) == 3


async def test_what_was_uncommitted_when_the_model_came_gets_its_vectors(tmp_path: Path) -> None:
    model = LateModel()
    async with assembled(tmp_path, model=model) as strata:
        await tell(strata, *(f"number {n}" for n in range(3)))
        await strata.projector.run_once()
        model.release.set()
        await strata.embeddings_loaded.wait()
        await tell(strata, "number 3")
        await strata.caught_up()
        assert len(await found_by_meaning(strata)) == 4
        assert (await stored(strata)).dense_through == 4


async def test_a_model_that_is_repaired_gives_vectors_to_what_was_said_without_it(
    tmp_path: Path,
) -> None:
    missing = {"embedding": {"provider": "fastembed", "path": str(tmp_path / "nowhere")}}
    async with opened(tmp_path, **missing) as strata:
        await tell(strata, "My dog is called Bruno.")
        await strata.caught_up()
        assert strata.embeddings.state == "failed"
        assert (await preview(strata)).receipt.degraded == ("embedding",)
    async with opened(tmp_path, embedding={"provider": "fastembed"}) as strata:
        await strata.caught_up()
        assert strata.embeddings.state == "ready"
        context = await preview(strata)
        assert context.receipt.degraded == ()
        assert context.receipt.layers.recall.items[0].dense_rank == 1
        assert (await stored(strata)).dense_through == 1


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_another_model_embeds_everything_anew(tmp_path: Path, meanwhile: bool) -> None:
    for identity in ("one", "two", "two"):
        model = LateModel(identity=identity)
        async with assembled(tmp_path, model=model) as strata:
            if identity == "one":
                await tell(strata, *(f"number {n}" for n in range(5)))
            elif meanwhile:
                await tell(strata, "said before the model was there")
                await strata.projector.run_once()
            model.release.set()
            await strata.caught_up()
            session = await stored(strata)
            assert session.dense_through == session.lexical_through == session.last_seq
            assert len(await found_by_meaning(strata)) >= 5
            assert "number 0" in await found_by_meaning(strata)
            assert await strata.store.work.pending() == []


class Moody(LetterEmbeddings):
    away = True

    def embed_query(self, text: str) -> list[float]:
        if self.away:
            raise OSError("no route to host")
        return super().embed_query(text)


async def test_an_embedding_endpoint_that_is_away_does_not_keep_words_from_being_found(
    tmp_path: Path,
) -> None:
    moody = Moody()
    model: DenseModel = LateModel(moody)
    assert isinstance(model, LateModel)
    model.release.set()
    async with assembled(tmp_path, model=model) as strata:
        await strata.embeddings_loaded.wait()
        await tell(strata, "My dog is called Bruno.")
        await strata.projector.run_once()
        assert await found_by_words(strata, "dog") == {"My dog is called Bruno."}
        context = await preview(strata)
        assert "Bruno" in context.recall_block
        assert context.receipt.degraded == ("embedding",)
        with pytest.raises(EmbeddingUnavailable):
            await strata.caught_up()
        assert await strata.store.work.pending() == [KEY]
        moody.away = False
        await strata.caught_up()
        assert await found_by_meaning(strata) == {"My dog is called Bruno."}
        assert await strata.store.work.pending() == []


async def test_the_background_catches_up_by_itself(tmp_path: Path) -> None:
    async with memory.open_memory(config(tmp_path), background=True) as strata:
        await tell(strata, "My dog is called Bruno.")

        async def found() -> bool:
            return bool(await found_by_words(strata, "dog"))

        await eventually(found)


# --- poison ----------------------------------------------------------------------------------

MARKER = "cursedword"


class Choking(LetterEmbeddings):
    """Fails on a marker; away altogether when it is told to be."""

    away = False

    def embed_query(self, text: str) -> list[float]:
        if self.away or MARKER in text:
            raise ValueError(f"cannot read {text}")
        return super().embed_query(text)


async def loaded(embeddings: LetterEmbeddings) -> LateModel:
    model = LateModel(embeddings)
    model.release.set()
    return model


async def fail(strata: Strata, times: int, key: str = KEY) -> None:
    """Let this session's projection be tried so often."""
    for _ in range(times):
        strata.projector.changes.note(key)
        await strata.projector.run_once()


async def aside(strata: Strata) -> dict[str, str]:
    """The texts of the messages that were set aside, and why."""
    found = {}
    for message_id, reason, _ in await strata.store.work.poisoned():
        turns = await strata.store.turns.get_many([turn_of(message_id)], now=now())
        text = next(m.content for t in turns.values() for m in t.messages if m.id == message_id)
        found[text] = reason
    return found


async def test_a_message_on_which_the_embedder_chokes_is_set_aside_and_blocks_nobody(
    tmp_path: Path,
) -> None:
    """R17: others are done, its own words are found, and it is visible after a restart."""
    async with assembled(tmp_path, model=await loaded(Choking())) as strata:
        await strata.embeddings_loaded.wait()
        await tell(strata, "before", f"the {MARKER} itself", "penguins")
        await tell(strata, "elsewhere", session="other")
        await fail(strata, FAILURES - 1)
        assert await aside(strata) == {}
        assert await found_by_meaning(strata) == {"elsewhere"}
        assert "penguins" in await found_by_words(strata, "penguins"), "words are there at once"
        await fail(strata, 1)
        assert await aside(strata) == {f"the {MARKER} itself": "embedding"}
        assert await found_by_meaning(strata) == {"before", "penguins", "elsewhere"}
        assert f"the {MARKER} itself" in await found_by_words(strata, MARKER)
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        assert (await stored(strata)).dense_through == 3
        await tell(strata, "and on")
        await strata.caught_up()
        assert "and on" in await found_by_meaning(strata)
    async with opened(tmp_path) as strata:
        assert await aside(strata) == {f"the {MARKER} itself": "embedding"}
        await strata.history.delete_session(USER, SESSION)
        assert await strata.store.work.poisoned() == []


async def test_of_a_turn_only_the_message_that_is_the_fault_is_set_aside(tmp_path: Path) -> None:
    async with assembled(tmp_path, model=await loaded(Choking())) as strata:
        await strata.embeddings_loaded.wait()
        await say(strata, f"what is {MARKER}?", "I do not know.")
        await fail(strata, FAILURES)
        assert await aside(strata) == {f"what is {MARKER}?": "embedding"}
        assert await found_by_meaning(strata) == {"I do not know."}
        await strata.caught_up()


async def test_an_embedder_that_is_away_poisons_nothing(tmp_path: Path) -> None:
    choking = Choking()
    async with assembled(tmp_path, model=await loaded(choking)) as strata:
        await strata.embeddings_loaded.wait()
        choking.away = True
        await tell(strata, "before", f"the {MARKER} itself")
        await fail(strata, 4 * FAILURES)
        assert await aside(strata) == {}
        choking.away = False
        await fail(strata, 1)
        assert await aside(strata) == {f"the {MARKER} itself": "embedding"}
        assert await found_by_meaning(strata) == {"before"}
        await strata.caught_up()


async def test_an_index_that_is_away_for_long_poisons_nothing_and_is_complete_afterwards(
    tmp_path: Path,
) -> None:
    """R11."""
    async with assembled(tmp_path, around=Away) as strata:
        index = strata.index
        assert isinstance(index, Away)
        index.away = True
        for n in range(4 * FAILURES):
            await say(strata, f"question {n}", f"answer {n}", recall="none")
            await fail(strata, 1)
        assert await aside(strata) == {}
        index.away = False
        await fail(strata, 1)
        await strata.caught_up()
        assert await aside(strata) == {}
        assert await points(strata) == 8 * FAILURES
        assert (await stored(strata)).lexical_through == 8 * FAILURES


async def test_an_index_that_comes_and_goes_poisons_nothing(
    tmp_path: Path, rng: random.Random
) -> None:
    async with assembled(tmp_path, around=Away) as strata:
        index = strata.index
        assert isinstance(index, Away)
        index.answers = lambda: rng.random() < 0.1
        await tell(strata, *(f"statement {n}" for n in range(20)))
        for _ in range(60):
            await fail(strata, 1)
        assert await aside(strata) == {}
        index.answers = lambda: True
        await strata.caught_up()
        assert await points(strata) == 20


async def test_a_message_that_the_index_refuses_is_set_aside(tmp_path: Path) -> None:
    class Refusing(IndexAround):
        keeps_text = True

        async def upsert(self, points: Sequence[Point]) -> None:
            if any(p.document and MARKER in p.document["page_content"] for p in points):
                raise IndexUnavailable("400")
            await self.inner.upsert(points)

    async with assembled(tmp_path, around=Refusing, model=await loaded(Choking())) as strata:
        await strata.embeddings_loaded.wait()
        await tell(strata, "before", f"the {MARKER} itself", "after")
        await fail(strata, FAILURES)
        assert (await aside(strata))[f"the {MARKER} itself"] in ("index", "embedding")
        assert await found_by_meaning(strata) == {"before", "after"}
        await strata.caught_up()
        assert await strata.store.work.pending() == []


async def test_what_crashes_on_one_text_holds_up_neither_other_sessions_nor_its_own(
    tmp_path: Path,
) -> None:
    class Crashing(IndexAround):
        keeps_text = True

        async def upsert(self, points: Sequence[Point]) -> None:
            if any(p.document and MARKER in p.document["page_content"] for p in points):
                raise ZeroDivisionError
            await self.inner.upsert(points)

    async with assembled(tmp_path, around=Crashing) as strata:
        await tell(strata, f"the {MARKER} itself", "after")
        await tell(strata, "elsewhere", session="other")
        await fail(strata, FAILURES)
        assert await aside(strata) == {f"the {MARKER} itself": "ZeroDivisionError"}
        assert await points(strata) == 2
        await strata.caught_up()


@pytest.mark.parametrize("text", ["x", "word " * 12_800, "字" * 21_333, "a" * 64_000])
async def test_the_longest_and_the_emptiest_messages_are_no_poison(
    tmp_path: Path, text: str
) -> None:
    async with assembled(tmp_path, model=await loaded(Choking())) as strata:
        await strata.embeddings_loaded.wait()
        await tell(strata, "before", text, "after")
        accepted = await strata.memory.begin(
            TurnRequest(user=USER, session_id=SESSION, question="q")
        )
        await accepted.finish("", status="failed")
        await strata.caught_up()
        assert await aside(strata) == {}
        assert await strata.store.work.pending() == []
        assert await found_by_meaning(strata) == {"before", text, "after", "q"}


async def test_retries_come_later_and_later_and_not_all_at_once(tmp_path: Path) -> None:
    """`BACKOFF_SECONDS` with jitter, each session its own."""
    async with assembled(tmp_path, around=Away) as strata:
        index = strata.index
        assert isinstance(index, Away)
        index.away = True
        names = [f"s{n}" for n in range(8)]
        for name in names:
            await tell(strata, "hello", session=name)
        for times, delay in enumerate(BACKOFF_SECONDS, start=1):
            for name in names:
                strata.projector.changes.note(session_key(USER.key, name))
            began = time.monotonic()
            await strata.projector.run_once()
            waits = [f.not_before - began for f in strata.projector.backoff.failures.values()]
            assert {f.times for f in strata.projector.backoff.failures.values()} == {times}
            assert len(set(waits)) == len(names)
            for wait in waits:
                assert (1 - JITTER) * delay <= wait <= (1 + JITTER) * delay + 5.0


# --- turns that ran again ----------------------------------------------------------------------


async def failed_turn(strata: Strata, question: str, text: str = "") -> Turn:
    accepted = await strata.memory.begin(
        TurnRequest(user=USER, session_id=SESSION, question=question, recall="none")
    )
    return await accepted.finish(text, status="failed")


async def run_again(strata: Strata, was: Turn, answer: str) -> Turn:
    """Begin the turn again and end it with this answer."""
    assert was.assistant is not None
    begun = msgspec.structs.replace(
        was, status="running", fencing_token=f"again {was.attempt}", attempt=was.attempt + 1
    )
    assert await strata.store.turns.rerun(begun, was=was)
    ended = answered(begun, answer, status="done", message_status="done", counter=strata.counter)
    assert await strata.store.turns.save(ended)
    strata.projector.changes.note(was.session_key)
    return ended


@pytest.mark.parametrize("index", ["index", "no index"])
async def test_a_turn_that_ran_again_is_projected_again(
    tmp_path: Path, stored_in: dict[str, str], index: str
) -> None:
    more = {"index": {"url": "none"}} if index == "no index" else {}
    async with opened(tmp_path, store=stored_in, **more) as strata:
        await tell(strata, "My cat is called Otto.")
        was = await failed_turn(strata, "And my dog?", "half an answerword. " * 60)
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        await run_again(strata, was, "Bruno it is.")
        assert await strata.store.work.pending() == [KEY]
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        if index == "no index":
            return
        assert await points(strata) == 3
        assert await found_by_words(strata, "answerword") == set()
        assert await found_by_words(strata, "Bruno") == {"And my dog?", "Bruno it is."}
        await tell(strata, "How nice, wonderful.")
        await strata.caught_up()
        assert await points(strata) == 4
        assert "Bruno it is." in await found_by_words(strata, "wonderful")


async def test_what_follows_a_turn_that_ran_again_gets_its_new_neighbour(tmp_path: Path) -> None:
    model = await loaded(LetterEmbeddings())
    async with assembled(tmp_path, model=model) as strata:
        await strata.embeddings_loaded.wait()
        was = await failed_turn(strata, "And my dog?", "half an answerword.")
        await strata.caught_up()
        await run_again(strata, was, "Bruno it is.")
        await tell(strata, "How nice.", "Thanks.")  # newer, and projected in the same batch
        await strata.caught_up()
        assert await found_by_words(strata, "Bruno") == {
            "And my dog?", "Bruno it is.", "How nice.",
        }  # fmt: skip
        assert await found_by_words(strata, "answerword") == set()
        assert await found_by_meaning(strata) == {
            "And my dog?", "Bruno it is.", "How nice.", "Thanks.",
        }  # fmt: skip
        assert await strata.store.work.pending() == []


async def test_an_attempt_that_the_projection_has_not_seen_is_not_settled(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        was = await failed_turn(strata, "And my dog?", "half")
        await strata.projector.run_once()  # has seen attempt 1, and committed nothing yet
        second = await run_again(strata, was, "Bruno it is.")
        await strata.projector.commit()
        assert (await stored(strata)).lexical_through == 2
        assert await strata.store.work.pending() == [KEY]
        await strata.projector.run_once()
        third = msgspec.structs.replace(second, status="failed", fencing_token="third", attempt=3)
        assert third.attempt > second.attempt
        await strata.projector.commit()
        assert await strata.store.work.pending() == []
        assert await found_by_words(strata, "Bruno") == {"And my dog?", "Bruno it is."}


async def test_a_turn_that_ran_again_before_it_was_projected_is_settled_too(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as strata:
        was = await failed_turn(strata, "And my dog?")
        await run_again(strata, was, "Bruno it is.")
        await strata.caught_up()
        assert await points(strata) == 2
        assert await strata.store.work.pending() == []


async def test_poison_in_a_turn_that_ran_again_is_set_aside(tmp_path: Path) -> None:
    async with assembled(tmp_path, model=await loaded(Choking())) as strata:
        await strata.embeddings_loaded.wait()
        was = await failed_turn(strata, "And my dog?", "half")
        await strata.caught_up()
        await run_again(strata, was, f"the {MARKER} itself")
        await fail(strata, FAILURES)
        assert await aside(strata) == {f"the {MARKER} itself": "embedding"}
        await strata.caught_up()
        assert await strata.store.work.pending() == []
        assert await found_by_words(strata, MARKER) == {"And my dog?", f"the {MARKER} itself"}
