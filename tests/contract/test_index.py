"""One suite over every VectorIndex: what memory/indexes/base.py promises."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient
from servers.qdrant import RUN, QdrantServer
from unit.builders import NOON, LetterEmbeddings

from memory.embeddings import SparseVector, sparse_document, sparse_query
from memory.errors import IndexUnavailable
from memory.indexes.base import Document, Hit, Point, VectorIndex
from memory.indexes.edge import EdgeIndex
from memory.indexes.features import FEATURES, Payload, name_hash
from memory.indexes.qdrant import QdrantIndex
from memory.text import point_id

Opener = Callable[[], VectorIndex]
DIMENSIONS = 8
SECONDS = 30.0  # nothing here is about time
FAR = NOON + timedelta(days=999)
embed = LetterEmbeddings().embed_query


SERVER_URL = os.environ.get("STRATA_TEST_QDRANT_URL")


class LocalQdrant(QdrantIndex):
    """Over the client's own local mode instead of a server."""

    def __init__(self, folder: Path) -> None:
        super().__init__("http://localhost")
        self._collection.connect = lambda: AsyncQdrantClient(path=str(folder))  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def rest_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    with QdrantServer(tmp_path_factory.mktemp("qdrant"), api_key="key") as server:
        yield server


@pytest.fixture(
    params=[
        "edge",
        pytest.param(
            "qdrant-local",
            marks=pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local"),
        ),
        "qdrant-rest",
        pytest.param(
            "qdrant-server",
            marks=pytest.mark.skipif(not SERVER_URL, reason="STRATA_TEST_QDRANT_URL is not set"),
        ),
    ]
)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Makes an index that is not open yet; each call means the same data."""
    name = f"test-{uuid4().hex}"
    RUN.add(request.param)
    if request.param == "edge":
        yield lambda: EdgeIndex(tmp_path / "data" / "index")
    elif request.param == "qdrant-local":
        yield lambda: LocalQdrant(tmp_path / "local")
    elif request.param == "qdrant-rest":
        server = request.getfixturevalue("rest_server")
        yield lambda: QdrantIndex(
            server.url, api_key="key", collection=name, timeout_seconds=SECONDS
        )
    else:
        assert SERVER_URL
        key = os.environ.get("STRATA_TEST_QDRANT_KEY")
        yield lambda: QdrantIndex(SERVER_URL, api_key=key, collection=name, timeout_seconds=SECONDS)
        client = QdrantClient(SERVER_URL, api_key=key, check_compatibility=False)
        client.delete_collection(name)
        client.close()


@pytest.fixture
async def index(make: Opener) -> AsyncIterator[VectorIndex]:
    opened = make()
    assert await opened.open()
    assert await opened.use_model("letters", DIMENSIONS)
    yield opened
    await opened.close()


def point(
    text: str,
    *,
    user: str = "anna",
    session: str = "s1",
    message: str = "",
    speakers: Sequence[str] = (),
    expires: datetime = FAR,
    passage: int = 0,
    dense: bool = True,
) -> Point:
    message = message or f"{user}.{session}.{text}"
    payload = Payload(
        user=user, session=session, message=message, role="user", speakers=list(speakers),
        day=NOON.toordinal(), tokens=len(text.split()), passage=passage,
        expires_at=math.ceil(expires.timestamp()),
    )  # fmt: skip
    vector = embed(text) if dense else None
    return Point(point_id(message, passage), payload, sparse_document(text), vector)


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.payload["message"].rpartition(".")[2] for hit in hits]


async def lexical(
    index: VectorIndex,
    words: str,
    *,
    user: str = "anna",
    session: str | None = None,
    limit: int = 10,
    now: datetime = NOON,
) -> list[str]:
    hits = await index.search(
        user=user, session=session, sparse=sparse_query(words), dense=None, limit=limit,
        now=now,
    )  # fmt: skip
    assert hits.dense == []
    return texts(hits.lexical)


async def dense(index: VectorIndex, text: str, *, user: str = "anna") -> list[str]:
    hits = await index.search(
        user=user, sparse=SparseVector([], []), dense=embed(text), limit=10, now=NOON
    )
    assert hits.lexical == []
    return texts(hits.dense)


async def test_a_new_index_asks_for_everything_to_be_projected(make: Opener) -> None:
    index = make()
    assert await index.open()
    assert await index.count() == 0
    assert await index.count("anna") == 0
    assert await index.speakers("anna") == frozenset()
    assert await lexical(index, "tea") == []
    await index.close()


async def test_what_was_flushed_is_there_after_a_restart(make: Opener) -> None:
    index = make()
    await index.open()
    await index.use_model("letters", DIMENSIONS)
    await index.upsert([point("green tea", speakers=["x"])])
    await index.flush()
    await index.close()
    again = make()
    assert not await again.open()
    assert not await again.use_model("letters", DIMENSIONS), "its vectors are there"
    assert await lexical(again, "tea") == ["green tea"]
    assert await dense(again, "green tea") == ["green tea"]
    assert await again.speakers("anna") == {"x"}
    await again.close()


async def test_hits_carry_their_payload_and_both_rankings_are_best_first(
    index: VectorIndex,
) -> None:
    stored = [point("green tea tea"), point("green grass"), point("black coffee")]
    await index.upsert(stored)
    hits = await index.search(
        user="anna", sparse=sparse_query("green tea"), dense=embed("green grass"), limit=10,
        now=NOON,
    )  # fmt: skip
    assert texts(hits.lexical) == ["green tea tea", "green grass"]
    assert texts(hits.dense)[0] == "green grass"
    assert len(hits.dense) == 3
    for ranking in hits:
        scores = [hit.score for hit in ranking]
        assert scores == sorted(scores, reverse=True)
    assert hits.dense[0].score == pytest.approx(1.0)
    by_message = {p.payload["message"]: p.payload for p in stored}
    for hit in (*hits.lexical, *hits.dense):
        stored_payload: Mapping[str, object] = by_message[hit.payload["message"]]
        brought: Mapping[str, object] = hit.payload
        assert {name: brought[name] for name in FEATURES} == {
            name: stored_payload[name] for name in FEATURES
        }


async def test_the_text_of_a_passage_is_not_kept_unless_asked_for(
    index: VectorIndex, tmp_path: Path
) -> None:
    document = Document(page_content="the canary sings", metadata={"user": "canary"})
    await index.upsert([point("green tea")._replace(document=document)])
    await index.flush()
    hits = await index.search(
        user="anna", sparse=sparse_query("tea"), dense=None, limit=9, now=NOON
    )
    assert set(hits.lexical[0].payload) & {"page_content", "metadata"} == set()
    embedded = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"canary" in data for data in embedded)


async def test_rare_words_weigh_more_than_common_ones(index: VectorIndex) -> None:
    await index.upsert([point(f"tea number {n}") for n in range(20)] + [point("tea with Bruno")])
    assert (await lexical(index, "tea Bruno"))[0] == "tea with Bruno"


async def test_a_search_finds_the_users_own_points_alone(index: VectorIndex) -> None:
    await index.upsert([point("green tea"), point("green tea", user="oskar")])
    assert await lexical(index, "tea", user="nobody") == []
    for user in ("anna", "oskar"):
        hits = await index.search(
            user=user, sparse=sparse_query("tea"), dense=embed("tea"), limit=10, now=NOON
        )
        found = {hit.payload["message"] for hit in (*hits.lexical, *hits.dense)}
        assert found == {f"{user}.s1.green tea"}


async def test_a_search_can_be_kept_to_one_session(index: VectorIndex) -> None:
    await index.upsert([point("green tea"), point("black tea", session="s2")])
    assert await lexical(index, "tea", session="s2") == ["black tea"]
    assert await lexical(index, "tea", session="s3") == []


async def test_a_search_hides_what_has_expired(index: VectorIndex) -> None:
    await index.upsert([point("green tea", expires=NOON + timedelta(seconds=5)), point("tea")])
    assert len(await lexical(index, "tea")) == 2
    assert await lexical(index, "tea", now=NOON + timedelta(seconds=5)) == ["tea"]


async def test_a_search_keeps_to_its_limit(index: VectorIndex) -> None:
    await index.upsert([point(f"tea {n}") for n in range(9)])
    assert len(await lexical(index, "tea", limit=4)) == 4


async def test_a_search_for_nothing_finds_nothing(index: VectorIndex) -> None:
    await index.upsert([point("tea")])
    assert await lexical(index, "the of and") == []


async def test_inserting_twice_is_the_same_as_once(index: VectorIndex) -> None:
    await index.upsert([point("green tea", message="m")])
    await index.upsert([point("black coffee", message="m")])
    assert await index.count("anna") == 1
    assert await lexical(index, "tea") == []
    assert await lexical(index, "coffee") == ["m"]
    await index.upsert([])
    assert await index.count() == 1


async def test_a_hit_tells_the_newest_features_of_its_point(index: VectorIndex) -> None:
    before = point("green tea", message="m")
    await index.upsert([before])
    assert await lexical(index, "tea") == ["m"]
    features: Payload = {**before.payload, "tokens": 99, "role": "assistant", "session": "s9"}
    await index.upsert([before._replace(payload=features)])
    hits = await index.search(
        user="anna", sparse=sparse_query("tea"), dense=embed("tea"), limit=9, now=NOON
    )
    for (hit,) in hits:
        told = (hit.payload["tokens"], hit.payload["role"], hit.payload["session"])
        assert told == (99, "assistant", "s9")


async def test_deleted_points_take_their_speakers_with_them(index: VectorIndex) -> None:
    await index.upsert(
        [
            point("a", message="m1", speakers=["one"]),
            point("b", session="s2", speakers=["two"]),
            point("c", session="s3", speakers=["three"], expires=NOON),
            point("d", session="s4", speakers=["four"]),
        ]
    )
    assert await index.speakers("anna") == {"one", "two", "three", "four"}
    await index.delete_messages(user="anna", messages=["m1"])
    assert await index.speakers("anna") == {"two", "three", "four"}
    await index.delete_session(user="anna", session="s2")
    assert await index.speakers("anna") == {"three", "four"}
    await index.delete_expired(NOON)
    assert await index.speakers("anna") == {"four"}
    await index.upsert([point("e", speakers=["five"])])
    assert await index.speakers("anna") == {"four", "five"}


async def test_sparse_vectors_are_replaced_and_unknown_points_passed_over(
    index: VectorIndex,
) -> None:
    known = point("green tea")
    await index.upsert([known])
    new = sparse_document("black coffee")
    await index.update_sparse([(known.id, new), (point_id("unknown", 0), new)])
    await index.update_sparse([])
    assert await lexical(index, "tea") == []
    assert await lexical(index, "coffee") == ["green tea"]
    assert await dense(index, "green tea") == ["green tea"], "the other vector stays"
    assert await index.count() == 1


async def test_dense_vectors_can_follow_later(index: VectorIndex) -> None:
    late = point("green tea", dense=False)
    await index.upsert([late, point("coffee")])
    assert await dense(index, "green tea") == ["coffee"]
    await index.update_dense([(late.id, embed("green tea")), (point_id("unknown", 0), embed("x"))])
    assert await dense(index, "green tea") == ["green tea", "coffee"]
    assert await lexical(index, "tea") == ["green tea"]


async def test_another_model_starts_anew_and_words_stay(index: VectorIndex) -> None:
    known = point("green tea")
    await index.upsert([known])
    assert not await index.use_model("letters", DIMENSIONS)
    assert await index.use_model("other", DIMENSIONS)
    assert await dense(index, "green tea") == []
    assert await lexical(index, "tea") == ["green tea"]
    await index.update_dense([(known.id, embed("green tea"))])
    assert await dense(index, "green tea") == ["green tea"]
    assert await index.use_model("letters", DIMENSIONS), "its vectors were dropped"


async def test_a_model_may_have_other_dimensions(index: VectorIndex) -> None:
    await index.upsert([point("tea")])
    assert await index.use_model("letters", 3)
    await index.update_dense([(point("tea").id, [1.0, 0.0, 0.0])])
    hits = await index.search(
        user="anna", sparse=SparseVector([], []), dense=[1.0, 0.0, 0.0], limit=1, now=NOON
    )
    assert texts(hits.dense) == ["tea"]


async def test_a_vector_of_the_wrong_size_is_an_error_of_the_index(index: VectorIndex) -> None:
    with pytest.raises(IndexUnavailable):
        await index.upsert([point("tea")._replace(dense=[1.0])])


async def test_speakers_are_those_of_the_user(index: VectorIndex) -> None:
    bruno, maria = name_hash("anna", "Bruno"), name_hash("oskar", "Maria")
    await index.upsert(
        [
            point("a", speakers=[bruno]),
            point("b", speakers=[bruno, "second"]),
            point("c", user="oskar", speakers=[maria]),
        ]
    )
    assert await index.speakers("anna") == {bruno, "second"}
    assert await index.speakers("oskar") == {maria}


async def test_deleting_a_session_leaves_the_others(index: VectorIndex) -> None:
    await index.upsert([point("a"), point("b", session="s2"), point("c", user="oskar"), point("d")])
    await index.delete_session(user="anna", session="s1")
    assert await index.count("anna") == 1
    assert await index.count("oskar") == 1
    await index.delete_session(user="anna", session="s1")


async def test_deleting_messages_takes_all_their_passages_of_that_user_alone(
    index: VectorIndex,
) -> None:
    await index.upsert(
        [
            point("a", message="m1"),
            point("b", message="m1", passage=1),
            point("c", message="m2"),
            point("d", message="m3", user="oskar"),
        ]
    )
    await index.delete_messages(user="anna", messages=["m1", "m3", "unknown"])
    await index.delete_messages(user="anna", messages=[])
    assert await index.count("anna") == 1
    assert await index.count("oskar") == 1


async def test_what_has_expired_is_deleted_for_every_user(index: VectorIndex) -> None:
    await index.upsert(
        [
            point("a", expires=NOON),
            point("b", user="oskar", expires=NOON),
            point("c", expires=NOON + timedelta(seconds=1)),
        ]
    )
    await index.delete_expired(NOON - timedelta(seconds=1))
    assert await index.count() == 3
    await index.delete_expired(NOON)
    assert await index.count() == 1


async def test_searching_goes_on_while_points_are_written(index: VectorIndex) -> None:
    async def write(n: int) -> None:
        await index.upsert([point(f"tea {n} {i}") for i in range(50)])
        if n % 3 == 0:
            await index.flush()

    async def read() -> None:
        for _ in range(20):
            assert len(await lexical(index, "tea", limit=999)) <= 500
            await asyncio.sleep(0)

    await asyncio.gather(*(write(n) for n in range(10)), *(read() for _ in range(5)))
    assert await index.count() == 500
    assert len(await lexical(index, "tea", limit=999)) == 500
