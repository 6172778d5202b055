"""What is special about the index on a server: others share it, and the network is in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract.test_index import DIMENSIONS, embed, point
from qdrant_client import QdrantClient
from servers.proxy import FAULTS, Mode, Proxy
from servers.qdrant import QdrantServer
from waiting import quickly

from memory.embeddings import sparse_query
from memory.errors import IndexUnavailable
from memory.indexes import qdrant
from memory.indexes.base import Document, Point, dense_name
from memory.indexes.features import FEATURES
from memory.indexes.qdrant import QdrantIndex
from unit.builders import NOON

TESTS = Path(__file__).parents[3]
CANARY = "the canary sings at midnight"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    with QdrantServer(tmp_path_factory.mktemp("qdrant"), api_key="key") as server:
        yield server


@pytest.fixture
def server(shared: QdrantServer) -> QdrantServer:
    """The server with nothing in it."""
    for name in list(shared.collections):
        shared.collections.pop(name).remove()
    shared.requests.clear()
    return shared


def connected(server: QdrantServer, *, seconds: float = 10.0, text: bool = False) -> QdrantIndex:
    return QdrantIndex(server.url, api_key="key", timeout_seconds=seconds, payload_text=text)


def with_text(text: str) -> Point:
    document = Document(page_content=text, metadata={"user": "anna", "role": "user"})
    return point(text)._replace(document=document)


async def found(index: QdrantIndex, words: str) -> list[str]:
    hits = await index.search(
        user="anna", sparse=sparse_query(words), dense=embed(words), limit=9, now=NOON
    )
    return [hit.payload["message"].rpartition(".")[2] for hit in hits.lexical]


def stored(server: QdrantServer) -> list[dict[str, object]]:
    client = QdrantClient(server.url, metadata={"api-key": "key"}, check_compatibility=False)
    records, _ = client.scroll("strata", limit=100)
    client.close()
    return [record.payload or {} for record in records]


async def test_processes_that_start_at_once_agree_on_one_collection(server: QdrantServer) -> None:
    workers = [connected(server) for _ in range(6)]
    assert all(await asyncio.gather(*(worker.open() for worker in workers)))
    assert all(await asyncio.gather(*(w.use_model("letters", DIMENSIONS) for w in workers)))
    await asyncio.gather(*(w.upsert([point(f"tea {n}")]) for n, w in enumerate(workers)))
    assert [await worker.count("anna") for worker in workers] == [6] * 6
    late = connected(server)
    assert not await late.open()
    assert not await late.use_model("letters", DIMENSIONS)
    assert len(await found(late, "tea")) == 6
    for worker in (*workers, late):
        await worker.close()


async def test_a_process_that_died_before_it_projected_leaves_the_next_one_the_same_answer(
    server: QdrantServer,
) -> None:
    for _ in range(2):
        index = connected(server)
        assert await index.open()
        assert await index.use_model("letters", DIMENSIONS)
        await index.close()
    index = connected(server)
    await index.open()
    await index.upsert([point("green tea", dense=False)])
    assert await index.use_model("letters", DIMENSIONS), "no point has its vector"
    await index.close()
    index = connected(server)
    assert not await index.open()
    assert await index.use_model("letters", DIMENSIONS)
    await index.close()


async def test_the_collection_says_which_model_it_was_made_with(server: QdrantServer) -> None:
    index = connected(server)
    await index.open()
    await index.use_model("letters", DIMENSIONS)
    await index.use_model("other", 3)
    config = server.collections["strata"].config
    name = dense_name("other", 3)
    assert config["vectors"][name] == {"size": 3, "distance": "Cosine"}
    assert config["metadata"]["strata"] == {
        "vector": name, "model": "other", "dimensions": 3, "payload_text": False,
    }  # fmt: skip
    assert config["sparse_vectors"] == {"sparse": {"modifier": "idf"}}
    assert config["hnsw_config"] == {"m": 0, "payload_m": 16}
    indexed = {field: known["params"] for field, known in config["payload_schema"].items()}
    assert indexed["user"] == {"type": "keyword", "is_tenant": True}
    assert indexed["expires_at"]["type"] == "integer"
    assert set(indexed) == {"user", "session", "message", "speakers", "expires_at"}
    await index.close()


async def test_a_search_by_both_keys_is_one_exchange(server: QdrantServer) -> None:
    index = connected(server)
    await index.open()
    await index.use_model("letters", DIMENSIONS)
    await index.upsert([point("green tea", speakers=["x"])])
    server.requests.clear()
    assert await found(index, "tea") == ["green tea"]
    assert server.requests == ["POST /collections/strata/points/query/batch"]
    server.requests.clear()
    assert [await index.speakers("anna") for _ in range(3)] == [{"x"}] * 3
    assert server.requests == ["POST /collections/strata/facet"], "known for a while"
    await index.close()


async def test_many_points_are_written_in_pieces(server: QdrantServer) -> None:
    index = connected(server)
    await index.open()
    await index.use_model("letters", DIMENSIONS)
    server.requests.clear()
    points = [point(f"tea {n}", dense=False) for n in range(600)]
    await index.upsert(points)
    assert server.requests == ["PUT /collections/strata/points"] * 3
    await index.update_dense([(p.id, embed("tea")) for p in points])
    assert await index.count("anna") == 600
    await index.delete_messages(user="anna", messages=[p.payload["message"] for p in points[1:]])
    assert await index.count("anna") == 1
    await index.close()


async def test_speakers_written_by_another_process_are_seen_after_a_while(
    server: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = connected(server), connected(server)
    await one.open()
    await other.open()
    assert await one.speakers("anna") == frozenset()
    await other.upsert([point("a", speakers=["x"])])
    assert await other.speakers("anna") == {"x"}
    assert await one.speakers("anna") == frozenset()
    await one.delete_session(user="anna", session="unknown")
    assert await one.speakers("anna") == {"x"}
    monkeypatch.setattr(qdrant, "SPEAKERS_SECONDS", 0.0)
    after_a_while = connected(server)
    await after_a_while.open()
    assert await after_a_while.speakers("anna") == {"x"}
    await other.upsert([point("b", speakers=["y"])])
    assert await after_a_while.speakers("anna") == {"x", "y"}
    for index in (one, other, after_a_while):
        await index.close()


async def test_text_stays_out_of_the_collection_unless_it_is_asked_for(
    server: QdrantServer,
) -> None:
    index = connected(server)
    await index.open()
    await index.upsert([with_text(CANARY)])
    (payload,) = stored(server)
    assert set(FEATURES) < set(payload)
    assert not {"page_content", "metadata"} & set(payload)
    await index.close()


async def test_text_that_was_asked_for_goes_with_its_point(server: QdrantServer) -> None:
    index = connected(server, text=True)
    await index.open()
    await index.upsert([with_text(CANARY), with_text("tea")])
    texts = {payload["page_content"] for payload in stored(server)}
    assert texts == {CANARY, "tea"}
    assert "metadata.user" in server.collections["strata"].config["payload_schema"]
    await index.delete_messages(user="anna", messages=[with_text(CANARY).payload["message"]])
    assert [payload["page_content"] for payload in stored(server)] == ["tea"]
    await index.close()


async def test_text_comes_and_goes_with_the_setting(server: QdrantServer) -> None:
    index = connected(server)
    await index.open()
    await index.upsert([with_text("tea")])
    await index.close()
    index = connected(server, text=True)
    assert await index.open(), "everything is projected again, with text"
    await index.upsert([with_text("tea")])
    await index.close()
    index = connected(server, text=True)
    assert not await index.open()
    await index.close()
    index = connected(server)
    assert not await index.open()
    (payload,) = stored(server)
    assert not {"page_content", "metadata"} & set(payload)
    await index.close()


async def test_errors_name_the_reason_and_no_secret(server: QdrantServer) -> None:
    with pytest.raises(IndexUnavailable, match="not open"):
        await connected(server).count()
    wrong = QdrantIndex(server.url, api_key="sesame")
    with pytest.raises(IndexUnavailable, match="401") as caught:
        await wrong.open()
    assert "sesame" not in str(caught.value)
    await wrong.close()
    index = connected(server)
    await index.open()
    with pytest.raises(IndexUnavailable, match="no embedding model"):
        await index.update_dense([(point("tea").id, [1.0])])
    server.collections.pop("strata").remove()
    with pytest.raises(IndexUnavailable, match=r"404.*doesn't exist"):
        await index.upsert([point("tea")])
    assert await index.open(), "and it is made anew"
    await index.upsert([point("tea")])
    await index.close()
    await index.close()


async def test_an_address_where_nobody_listens_is_said_at_once(server: QdrantServer) -> None:
    index = QdrantIndex("http://127.0.0.1:9", timeout_seconds=5.0)
    with pytest.raises(IndexUnavailable, match="ConnectError"):
        await index.open()
    await index.close()


@pytest.mark.parametrize(("mode", "options"), FAULTS)
async def test_a_broken_network_is_an_error_in_time_and_is_forgotten_when_it_heals(
    server: QdrantServer, mode: Mode, options: dict[str, float]
) -> None:
    seconds = 0.5
    with Proxy("127.0.0.1", server.port) as proxy:
        # Written like this, the client takes it for another machine and keeps its connections.
        index = QdrantIndex(f"http://127.1:{proxy.port}", api_key="key", timeout_seconds=seconds)
        await index.open()
        await index.use_model("letters", DIMENSIONS)
        await index.upsert([point("green tea")])
        proxy.mode(mode, **options)  # type: ignore[arg-type]
        for call in (
            lambda: found(index, "tea"),
            lambda: index.upsert([point("black tea")]),
            lambda: index.speakers("anna"),
            lambda: index.delete_session(user="anna", session="s9"),
            lambda: index.count(),
            lambda: index.open(),
        ):
            with quickly(seconds + 0.5), pytest.raises(IndexUnavailable):
                await call()
        proxy.mode("pass")
        await index.upsert([point("black tea")])
        assert set(await found(index, "tea")) == {"green tea", "black tea"}
        assert not await index.open()
        await index.close()


async def test_what_was_written_survives_the_death_of_the_server(tmp_path: Path) -> None:
    with served(tmp_path, 0) as (process, port):
        index = QdrantIndex(f"http://127.0.0.1:{port}", timeout_seconds=10.0)
        await index.open()
        await index.use_model("letters", DIMENSIONS)
        await index.upsert([point("green tea", speakers=["x"])])
        assert await index.use_model("other", 3)
        await index.update_dense([(point("green tea").id, [1.0, 0.0, 0.0])])
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(IndexUnavailable):
            await index.count()
    with served(tmp_path, port):
        assert await index.count() == 1
        assert not await index.open()
        assert not await index.use_model("other", 3)
        hits = await index.search(
            user="anna", sparse=sparse_query("tea"), dense=[1.0, 0.0, 0.0], limit=9, now=NOON
        )
        assert [len(ranking) for ranking in hits] == [1, 1]
        assert await index.speakers("anna") == {"x"}
        await index.close()


@contextmanager
def served(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = [sys.executable, "-m", "servers.qdrant", "--folder", str(folder), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["port"]
        process.terminate()
