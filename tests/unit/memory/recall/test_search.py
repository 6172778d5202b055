from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import quickly

from memory.breaker import Breaker
from memory.config import ConfigSource, MemoryConfig
from memory.embeddings import DenseModel, sparse_document
from memory.errors import IndexUnavailable
from memory.indexes.base import Hits, Point, VectorIndex
from memory.indexes.edge import EdgeIndex
from memory.indexes.features import Payload, name_hashes
from memory.recall.search import BREAK_AFTER, Ranked, Recall
from memory.text import point_id
from unit.builders import NOON, IndexAround, LateModel, LetterEmbeddings

FAR = int((NOON + timedelta(days=999)).timestamp())


def point(text: str, *, speaker: str = "", role: str = "user", session: str = "s") -> Point:
    payload = Payload(
        user="anna", session=session, message=text, role=role,
        speakers=name_hashes("anna", speaker) if speaker else [], day=NOON.toordinal(),
        tokens=len(text.split()), passage=0, expires_at=FAR,
    )  # fmt: skip
    vector = LetterEmbeddings().embed_query(f"{speaker or role}: {text}")
    return Point(point_id(text, 0), payload, sparse_document(f"{speaker} {text}"), vector)


class Asked(LetterEmbeddings):
    """Remembers what was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed_query(self, text: str) -> list[float]:
        self.texts.append(text)
        return super().embed_query(text)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    opened = EdgeIndex(tmp_path / "index")
    await opened.open()
    await opened.use_model("letters", 8)
    yield opened
    await opened.close()


@pytest.fixture
async def model() -> AsyncIterator[LateModel]:
    loaded = LateModel(Asked())
    loaded.release.set()
    await loaded.load()
    yield loaded
    loaded.close()


def recall(index: VectorIndex | None, model: DenseModel, **config: Any) -> Recall:
    source = ConfigSource(MemoryConfig.model_validate({"recall": {"deadline": "5s", **config}}))
    return Recall(index=index, model=model, config=source)


async def ask(searching: Recall, question: str, **more: Any) -> Ranked:
    return await searching.search(question, user="anna", now=NOON, **more)


def found(ranked: Ranked) -> list[str]:
    return [c.payload["message"] for c in ranked.candidates]


async def test_both_keys_are_searched_and_ranked_together(
    index: EdgeIndex, model: LateModel
) -> None:
    await index.upsert([point("My dog is called Bruno."), point("We live in Zürich.")])
    ranked = await ask(recall(index, model), "What is my dog called?")
    assert found(ranked)[0] == "My dog is called Bruno."
    assert ranked.degraded == ()
    best = ranked.candidates[0]
    assert best.lexical_rank == 1
    assert best.dense_rank is not None


async def test_the_meaning_is_asked_in_the_first_person_and_the_words_as_they_stand(
    index: EdgeIndex, model: LateModel
) -> None:
    await index.upsert(
        [
            point("I adopted a dog.", speaker="Maria Kovacs"),
            point("I adopted a cat.", speaker="Oskar"),
        ]
    )
    ranked = await ask(recall(index, model), "What did Maria adopt?")
    asked = model._coming.embeddings
    assert isinstance(asked, Asked)
    assert asked.texts[-1] == "What did I adopt?"
    assert found(ranked)[0] == "I adopted a dog."


async def test_a_search_can_be_kept_to_one_session(index: EdgeIndex, model: LateModel) -> None:
    await index.upsert([point("green tea"), point("black tea", session="other")])
    assert found(await ask(recall(index, model), "tea", session="other")) == ["black tea"]


async def test_without_a_loaded_model_recall_is_by_words_and_says_so(index: EdgeIndex) -> None:
    late = LateModel()
    await index.upsert([point("My dog is called Bruno.")])
    ranked = await ask(recall(index, late), "dog")
    assert found(ranked) == ["My dog is called Bruno."]
    assert ranked.degraded == ("embedding",)
    assert ranked.candidates[0].dense_rank is None
    late.close()


async def test_without_an_index_nothing_is_searched(model: LateModel) -> None:
    assert await ask(recall(None, model), "dog") == Ranked([], ("recall",))


class Broken(IndexAround):
    def __init__(self, inner: VectorIndex, error: BaseException | None) -> None:
        super().__init__(inner)
        self.error = error

    async def search(self, **query: Any) -> Hits:
        if self.error is None:
            await asyncio.Event().wait()
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize("error", [IndexUnavailable("x"), KeyError("x"), TypeError(), None])
async def test_a_search_that_fails_or_hangs_is_degraded_in_time(
    index: EdgeIndex, model: LateModel, error: BaseException | None
) -> None:
    with quickly(1):
        ranked = await ask(recall(Broken(index, error), model, deadline="100ms"), "dog")
    assert ranked == Ranked([], ("recall",))


async def test_a_call_may_bring_its_own_deadline(index: EdgeIndex, model: LateModel) -> None:
    hanging = recall(Broken(index, None), model, deadline="never")
    assert (await ask(hanging, "dog", deadline=0.05)).degraded == ("recall",)
    waiting = asyncio.create_task(
        ask(recall(Broken(index, None), model, deadline="1ms"), "dog", deadline=math.inf)
    )
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_an_index_that_keeps_failing_costs_nobody_the_deadline(
    index: EdgeIndex, model: LateModel
) -> None:
    await index.upsert([point("My dog is called Bruno.")])
    broken = Broken(index, None)
    searching, clock = recall(broken, model, deadline="100ms"), [0.0]
    searching.breaker = Breaker(failures=3, probe_seconds=2.0, clock=lambda: clock[0])
    for n in range(3):
        assert searching.breaker.state == "closed", n
        assert (await ask(searching, "dog")).degraded == ("recall",)
    with quickly(0.1):  # none of them waits
        for _ in range(100):
            assert await ask(searching, "dog") == Ranked([], ("recall",))
    assert searching.breaker.state == "open"
    clock[0] += 2.0
    assert (await ask(searching, "dog")).degraded == ("recall",), "a probe, and it is away still"
    searching._index = index
    assert (await ask(searching, "dog")).degraded == ("recall",)
    clock[0] += 2.0
    assert found(await ask(searching, "dog")) == ["My dog is called Bruno."]
    assert searching.breaker.state == "closed"


async def test_a_missing_embedding_is_no_failure_of_the_index(index: EdgeIndex) -> None:
    late = LateModel()
    searching = recall(index, late)
    for _ in range(2 * BREAK_AFTER):
        assert (await ask(searching, "dog")).degraded == ("embedding",)
    assert searching.breaker.state == "closed"
    late.close()


async def test_a_cancelled_search_stays_cancelled(index: EdgeIndex, model: LateModel) -> None:
    searching = asyncio.create_task(ask(recall(Broken(index, None), model), "dog"))
    await asyncio.sleep(0)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching


async def test_a_model_that_fails_leaves_the_words(index: EdgeIndex) -> None:
    class Failing(LetterEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise OSError("no route")

    failing = LateModel(Failing())
    failing.release.set()
    await failing.load()
    await index.upsert([point("My dog is called Bruno.")])
    ranked = await ask(recall(index, failing), "dog")
    assert found(ranked) == ["My dog is called Bruno."]
    assert ranked.degraded == ("embedding",)
    failing.close()
