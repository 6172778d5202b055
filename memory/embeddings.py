"""The two vectors of a text: one of its meaning, by an embedding model, one of its words (BM25).

`DenseModel` goes through LangChain's Embeddings: FastEmbed over the shipped model, OpenAI, none. It
loads in the background: the service starts without waiting for it, recall searches by words until
it is loaded, and `reason` says why it was not. Vectors are never made up.

Sparse vectors are document weights here, IDF in Qdrant (Robertson and Zaragoza 2009). Tokenising,
stop words, stems and hashing are Qdrant's own (`qdrant_edge.Bm25`), in the language of the text. A
document has one form of each word; a query has two, its own language's and the English one, so
that a short question of unclear language still matches the words of a longer text.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from langchain_core.embeddings import Embeddings
from pydantic import SecretStr
from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, StopwordsSet

from memory.config import DEFAULT_EMBEDDING, EmbeddingConfig
from memory.errors import ConfigError, EmbeddingUnavailable
from memory.text import UNKNOWN, detect_language, split_unspaced
from memory.tokens import ASSETS

REQUEST_SECONDS = 10.0  # of an endpoint
TEXT_SECONDS = 1.0  # far more than a core needs for one passage
SHIPPED = ASSETS / "all-MiniLM-L6-v2"
T = TypeVar("T")
ModelState = Literal["off", "loading", "ready", "failed"]


class FastEmbedEmbeddings(Embeddings):
    """FastEmbed behind LangChain's interface, one text at a time.

    An int8 model's vectors depend a little on the other texts of a batch; one text per call makes
    them repeatable, and costs little on one core.
    """

    def __init__(self, name: str, path: Path | None) -> None:
        # Without this, onnxruntime's wheel writes a device id under the user's cache folder.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        from fastembed import TextEmbedding

        self._model = TextEmbedding(
            name, specific_model_path=str(path) if path else None, threads=1
        )
        self.dimensions = int(self._model.embedding_size)

    def embed_query(self, text: str) -> list[float]:
        return [float(x) for x in next(iter(self._model.embed([text])))]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class LoadedEmbeddings(NamedTuple):
    """`identity` names model and weights: vectors of another identity do not compare."""

    embeddings: Embeddings
    dimensions: int
    identity: str


class DenseModel:
    """The embedding model and its state: off, loading, ready or failed (`reason` says why).

    One thread embeds questions, another passages: a question must not wait behind a batch.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        self.state: ModelState = "off" if config.provider == "none" else "loading"
        self.reason = ""
        self._loaded: LoadedEmbeddings | None = None
        self._queries = ThreadPoolExecutor(1, thread_name_prefix="embed-query")
        self._documents = ThreadPoolExecutor(1, thread_name_prefix="embed-document")

    @property
    def identity(self) -> str:
        return self._loaded.identity if self._loaded else ""

    @property
    def english_only(self) -> bool:
        """Whether its vectors mean little in other languages: true of the shipped model, unknown
        of every other."""
        return self._config.path is None and self._config.name == DEFAULT_EMBEDDING

    @property
    def dimensions(self) -> int:
        return self._loaded.dimensions if self._loaded else 0

    async def load(self) -> None:
        """Load within `load_timeout`; the outcome is in `state`, also when that fails."""
        if self.state == "off":
            return
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[LoadedEmbeddings] = loop.create_future()

        def settle(set_: Callable[[], None]) -> None:
            if not outcome.done():
                set_()

        def work() -> None:
            try:
                loaded = _load(self._config)
            except Exception as error:  # a library's download or parsing: any kind of error
                reason = error
                _call(loop, lambda: settle(lambda: outcome.set_exception(reason)))
            else:
                _call(loop, lambda: settle(lambda: outcome.set_result(loaded)))

        # A daemon thread: a download that hangs must not keep the process from ending.
        threading.Thread(target=work, name="embedding-load", daemon=True).start()
        timeout = self._config.load_timeout
        try:
            self._loaded = await asyncio.wait_for(outcome, None if timeout == 0 else timeout)
            self.state = "ready"
        except TimeoutError:
            self.state, self.reason = "failed", f"not loaded within {timeout:g} s"
        except Exception as error:  # see work()
            self.state, self.reason = "failed", f"{type(error).__name__}: {error}"

    async def query(self, text: str) -> list[float]:
        """The vector of a question, `dimensions` long. Raises EmbeddingUnavailable."""
        return await self._run(self._queries, lambda e: e.embed_query(text))

    async def documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of passages, in order. Raises EmbeddingUnavailable, also when they take
        longer than a second for each text."""
        seconds = REQUEST_SECONDS + TEXT_SECONDS * len(texts)
        try:
            async with asyncio.timeout(seconds):
                return await self._run(self._documents, lambda e: e.embed_documents(texts))
        except TimeoutError as error:
            raise EmbeddingUnavailable(f"no vectors within {seconds:g} s") from error

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[Embeddings], T]) -> T:
        if self._loaded is None:
            raise EmbeddingUnavailable(self.reason or self.state)
        embeddings = self._loaded.embeddings
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pool, work, embeddings)
        except Exception as error:  # onnxruntime, openai and httpx have no common base
            # Its name alone: this error is logged, and an endpoint's message can quote the texts.
            raise EmbeddingUnavailable(type(error).__name__) from error

    def close(self) -> None:
        self._queries.shutdown(wait=False, cancel_futures=True)
        self._documents.shutdown(wait=False, cancel_futures=True)


def _call(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits for this model any more
        loop.call_soon_threadsafe(work)


def _load(config: EmbeddingConfig) -> LoadedEmbeddings:
    if config.provider == "openai":
        return _load_openai(config)
    path = Path(config.path) if config.path else None
    if path is None and config.name == DEFAULT_EMBEDDING:
        path = SHIPPED
    if path is not None and not path.is_dir():
        raise ConfigError("embedding.path", f"{path} is not a folder")
    if path is None and os.environ.get("HF_HUB_OFFLINE") != "1":
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    model = FastEmbedEmbeddings(config.name, path)
    return LoadedEmbeddings(
        model, model.dimensions, f"{config.name}@{_graph_digest(config.name, path)}"
    )


def _graph_digest(name: str, path: Path | None) -> str:
    if path is None:
        return name
    graph = next(iter(sorted(path.rglob("*.onnx"))), None)
    if graph is None:
        raise ConfigError("embedding.path", f"{path} holds no .onnx file")
    with graph.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _load_openai(config: EmbeddingConfig) -> LoadedEmbeddings:
    from langchain_openai import OpenAIEmbeddings

    key = config.api_key or SecretStr(os.environ.get("OPENAI_API_KEY") or "none")

    def model(max_retries: int) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(
            model=config.name,
            base_url=config.base_url,
            api_key=key,
            dimensions=config.dimensions,
            check_embedding_ctx_length=False,
            max_retries=max_retries,
            timeout=REQUEST_SECONDS,
        )

    # Only this request is retried here: a question has no time for it, and the projector has its
    # own back-off.
    dimensions = config.dimensions or len(model(1).embed_query("dimensions"))
    return LoadedEmbeddings(model(0), dimensions, json.dumps([config.name, config.base_url]))


K1, B, AVERAGE_WORDS = 1.2, 0.75, 60.0


class SparseVector(NamedTuple):
    """`values[n]` is the weight of the word whose hash is `indices[n]`."""

    indices: list[int]
    values: list[float]


@lru_cache(maxsize=16)
def _bm25(name: str) -> Bm25:
    if name != UNKNOWN:
        return Bm25(Bm25Config(k=K1, b=B, avg_len=AVERAGE_WORDS, language=name))
    nothing = StopwordsSet(languages=set(), custom=set())
    plain = Bm25Config(
        k=K1, b=B, avg_len=AVERAGE_WORDS, stopwords=nothing, stemmer=DisabledStemmer()
    )
    return Bm25(plain)


def sparse_document(text: str) -> SparseVector:
    """BM25 weights of the words of a passage (term frequency and length; IDF is Qdrant's)."""
    vector = _bm25(detect_language(text)).embed_document(split_unspaced(text))
    return SparseVector(list(vector.indices), list(vector.values))


def sparse_query(text: str) -> SparseVector:
    """Weight 1 for every form of every word; may be empty (only stop words)."""
    prepared = split_unspaced(text)
    forms = {detect_language(text), "english"}
    indices = sorted({i for name in forms for i in _bm25(name).embed_query(prepared).indices})
    return SparseVector(indices, [1.0] * len(indices))
