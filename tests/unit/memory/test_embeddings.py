from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_SECONDS

from memory.config import DEFAULT_EMBEDDING, EmbeddingConfig
from memory.embeddings import SHIPPED, DenseModel
from memory.errors import EmbeddingUnavailable
from unit.builders import LateModel, LetterEmbeddings


def settings(**values: Any) -> EmbeddingConfig:
    return EmbeddingConfig.model_validate(values)


@pytest.fixture(scope="module")
def minilm() -> Iterator[DenseModel]:
    model = DenseModel(settings())
    asyncio.run(model.load())
    yield model
    model.close()


def cosine(one: list[float], other: list[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))


# --- the shipped model -----------------------------------------------------------------------


async def test_the_shipped_model_is_ready_and_says_what_it_is(minilm: DenseModel) -> None:
    assert (minilm.state, minilm.reason, minilm.dimensions) == ("ready", "", 384)
    graph = hashlib.sha256((SHIPPED / "model.onnx").read_bytes()).hexdigest()
    assert minilm.identity == f"{DEFAULT_EMBEDDING}@{graph[:16]}"


def test_the_shipped_model_is_known_to_read_english_alone(tmp_path: Path) -> None:
    for values, english in (({}, True), ({"path": str(tmp_path)}, False), ({"name": "m"}, False)):
        model = DenseModel(settings(**values))
        assert model.english_only is english
        model.close()


async def test_what_means_the_same_lies_near(minilm: DenseModel) -> None:
    question = await minilm.query("What is the name of my pet?")
    near, far = await minilm.documents(
        ["user: My dog is called Bruno.", "user: The train to Hamburg leaves at noon."]
    )
    assert len(question) == 384
    assert cosine(question, near) > cosine(question, far) + 0.2


async def test_a_vector_does_not_depend_on_what_else_is_embedded(minilm: DenseModel) -> None:
    texts = ["user: hello", "user: " + "a much longer text about something else " * 5, "ok"]
    together = await minilm.documents(texts)
    alone = [(await minilm.documents([text]))[0] for text in texts]
    assert together == alone
    assert await minilm.documents([]) == []


async def test_odd_texts_have_vectors_too(minilm: DenseModel) -> None:
    odd = ["", " ", "👩‍👩‍👧", "<|endoftext|>", "我" * 3000, "[PAD] [CLS]", "x" * 20_000]
    for vector in await minilm.documents(odd):
        assert len(vector) == 384
        assert all(math.isfinite(value) for value in vector)


# --- models that are not there ---------------------------------------------------------------


async def test_without_a_model_there_are_no_vectors() -> None:
    model = DenseModel(settings(provider="none"))
    await model.load()
    assert model.state == "off"
    with pytest.raises(EmbeddingUnavailable, match="off"):
        await model.query("hello")
    model.close()


async def test_before_it_is_loaded_there_are_no_vectors() -> None:
    model = DenseModel(settings())
    assert (model.state, model.identity, model.dimensions) == ("loading", "", 0)
    with pytest.raises(EmbeddingUnavailable, match="loading"):
        await model.documents(["hello"])
    model.close()


@pytest.mark.parametrize("kind", ["missing", "empty", "broken"])
async def test_a_folder_without_a_model_fails_with_a_reason(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "broken":
        for file in SHIPPED.iterdir():
            (folder / file.name).write_bytes(b"{}")
    model = DenseModel(settings(path=str(folder)))
    await model.load()
    assert model.state == "failed"
    assert model.reason
    assert (kind != "missing") or "embedding.path" in model.reason
    with pytest.raises(EmbeddingUnavailable):
        await model.query("hello")
    model.close()


class Failing(LetterEmbeddings):
    def embed_query(self, text: str) -> list[float]:
        raise ZeroDivisionError("inner")


async def test_a_model_that_raises_is_unavailable() -> None:
    model = LateModel(Failing())
    model.release.set()
    await model.load()
    with pytest.raises(EmbeddingUnavailable, match="ZeroDivisionError"):
        await model.query("hello")
    model.close()
    with pytest.raises(EmbeddingUnavailable):
        await model.documents(["after it was closed"])


class Slow(LetterEmbeddings):
    def __init__(self) -> None:
        self.go = threading.Event()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        assert self.go.wait(10)
        return super().embed_documents(texts)


async def test_a_question_does_not_wait_behind_a_batch_that_is_indexed() -> None:
    slow = Slow()
    model = LateModel(slow)
    model.release.set()
    await model.load()
    batch = asyncio.create_task(model.documents(["one", "two"]))
    assert len(await asyncio.wait_for(model.query("hello"), PATIENCE_SECONDS)) == 8
    assert not batch.done()
    slow.go.set()
    assert len(await batch) == 2
    model.close()


# --- an endpoint that speaks OpenAI's protocol -----------------------------------------------


class Endpoint(ThreadingHTTPServer):
    """`/embeddings` of OpenAI: three numbers for each text, or an error, or silence."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "ok"
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.silence = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.mode == "silent":
            self.server.silence.wait(30)
            return
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [(float(len(text)), 1.0, 0.0) for text in texts]
        data = [
            {"object": "embedding", "index": n, "embedding": _encoded(vector, body)}
            for n, vector in enumerate(vectors)
        ]
        answer = json.dumps(
            {"object": "list", "data": data, "model": "m",
             "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        ).encode()  # fmt: skip
        self.send_response(400 if self.server.mode == "error" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


def _encoded(vector: tuple[float, ...], body: dict[str, Any]) -> Any:
    if body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return list(vector)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.silence.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def remote(endpoint: Endpoint, **values: Any) -> EmbeddingConfig:
    shared = {"provider": "openai", "name": "m", "base_url": endpoint.url, "api_key": "sk-1"}
    return settings(**{**shared, **values})


async def test_an_endpoint_is_asked_for_plain_texts_with_the_configured_key(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    model = DenseModel(remote(endpoint))
    await model.load()
    assert (model.state, model.reason, model.dimensions) == ("ready", "", 3)
    assert await model.documents(["one", "three"]) == [[3.0, 1.0, 0.0], [5.0, 1.0, 0.0]]
    assert await model.query("four") == [4.0, 1.0, 0.0]
    assert endpoint.bodies[-2]["input"] == ["one", "three"]
    assert set(endpoint.keys) == {"Bearer sk-1"}
    assert endpoint.url in model.identity
    assert "sk-1" not in model.identity
    model.close()


async def test_an_endpoint_that_fails_costs_the_vectors_not_more(endpoint: Endpoint) -> None:
    model = DenseModel(remote(endpoint, dimensions=3))
    await model.load()
    assert model.state == "ready"
    endpoint.mode = "error"
    with pytest.raises(EmbeddingUnavailable):
        await model.query("hello")
    endpoint.mode = "ok"
    assert await model.query("hello") == [5.0, 1.0, 0.0]
    model.close()


async def test_an_endpoint_that_does_not_answer_is_given_up_in_time(endpoint: Endpoint) -> None:
    endpoint.mode = "silent"
    model = DenseModel(remote(endpoint, load_timeout="300ms"))
    await asyncio.wait_for(model.load(), PATIENCE_SECONDS)
    assert model.state == "failed"
    assert "0.3 s" in model.reason
    model.close()
