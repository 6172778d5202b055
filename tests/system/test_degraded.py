"""R11, S11: recall that lacks something says so, costs no answer, and catches up."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from waiting import assert_quick, eventually, wait_for

from system.conftest import BY_WORDS
from system.process import Model, Service, serving, strata
from system.streams import answer, ask

FACT = "My sister Valentina restores grand pianos in Trieste."
QUESTION = "Who restores grand pianos?"


@contextmanager
def blackhole() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def embedding_near(model: Model, folder: Path) -> AbstractContextManager[Service]:
    """A service whose texts are embedded by the fake model server."""
    return serving(
        folder,
        fake=model,
        embedding={"provider": "openai", "name": "near", "base_url": f"{model.url}/v1"},
        projector={"interval": "50ms"},
        recall={"deadline": "5s"},
    )


async def recalled(client: Any, *, dense: bool) -> bool:
    found = (await client.get("/v1/memories", params={"q": QUESTION})).json()
    items = [i for i in found["memories"] if "Valentina" in i["content"]]
    return bool(items) and (not dense or items[0]["dense_rank"] is not None)


async def test_without_an_index_recall_is_off_and_said(model: Model, folder: Path) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS, index={"url": "none"}) as service:
        async with service.client() as client:
            await answer(client, "old", FACT)
            events = await ask(client, "new", QUESTION)
            assert events[1].data["degraded"] == ["recall"]
            assert events[1].data["layers"]["recall"] == {"tokens": 0, "items": []}
            assert events[-1].name == "done"
            # The window works all the same.
            events = await ask(client, "old", QUESTION)
            assert events[1].data["layers"]["window"]["messages"] == 2
            found = await client.get("/v1/memories", params={"q": "pianos"})
            assert found.json() == {"memories": [], "degraded": ["recall"]}
            listed = (await client.get("/v1/memories")).json()
            assert len(listed["memories"]) == 6
            assert listed["degraded"] == []
            ready = (await client.get("/health/ready")).json()
            assert ready["index"]["status"] == "off"
            assert "index.url" in ready["index"]["reason"]
            quiet = await ask(client, "new", QUESTION, recall="none")
            assert quiet[1].data["degraded"] == []


async def test_without_an_embedding_model_recall_is_by_words_and_said(
    model: Model, folder: Path
) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS, projector={"interval": "50ms"}) as service:
        async with service.client() as client:
            await answer(client, "old", FACT)
            await eventually(lambda: recalled(client, dense=False))
            events = await ask(client, "new", QUESTION)
            receipt = events[1].data
            assert receipt["degraded"] == ["embedding"]
            (item, *_) = receipt["layers"]["recall"]["items"]
            assert item["dense_rank"] is None
            assert item["lexical_rank"] in (1, 2)  # the echo of the answer comes close
            assert "Valentina" in model.requests()[-1]["messages"][-1]["content"]
            ready = (await client.get("/health/ready")).json()
            assert ready["embedding"]["status"] == "off"


async def test_a_broken_model_folder_costs_meaning_and_nothing_else(
    model: Model, folder: Path
) -> None:
    broken = folder / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"this is no graph")
    with serving(
        folder, fake=model, embedding={"path": str(broken)}, projector={"interval": "50ms"}
    ) as service:
        async with service.client() as client:

            async def failed() -> Any:
                ready = (await client.get("/health/ready")).json()
                return ready if ready["embedding"]["status"] == "failed" else None

            ready = await eventually(failed)
            assert ready["status"] == "ready"
            assert ready["degraded"] is True
            assert ready["embedding"]["recall"] == "by words"
            assert ready["embedding"]["reason"]
            await answer(client, "old", FACT)
            await eventually(lambda: recalled(client, dense=False))
            events = await ask(client, "new", QUESTION)
            assert events[1].data["degraded"] == ["embedding"]
            assert events[-1].name == "done"
    check = strata("check", folder=folder, embedding={"path": str(broken)})
    assert check.returncode != 0
    assert "embedding" in check.stderr


async def test_an_embedding_endpoint_that_hangs_delays_neither_the_start_nor_an_answer(
    model: Model, folder: Path
) -> None:
    """DESIGN §6: the port opens within 3 s; recall is by words until vectors are there."""
    with (
        blackhole() as nowhere,
        serving(
            folder,
            fake=model,
            embedding={"provider": "openai", "name": "far", "base_url": nowhere},
            projector={"interval": "50ms"},
        ) as service,
    ):
        told = wait_for(
            lambda: next((x for x in service.child.lines() if x["event"] == "serving"), None)
        )
        assert_quick(told["seconds"], 3)
        async with service.client() as client:
            ready = (await client.get("/health/ready")).json()
            assert ready["embedding"]["status"] == "loading"
            await answer(client, "old", FACT)
            await eventually(lambda: recalled(client, dense=False))
            events = await ask(client, "new", QUESTION)
            assert events[1].data["degraded"] == ["embedding"]
            assert events[1].data["layers"]["recall"]["items"]
            began = time.monotonic()
        assert await asyncio.to_thread(service.terminate) == 0
        took = time.monotonic() - began
        assert_quick(took, 8, what="a thread that hangs does not keep it from ending")


async def test_vectors_follow_when_the_embedding_endpoint_answers(
    model: Model, folder: Path
) -> None:
    """R11: later caught up; also what was said meanwhile gets its vectors."""
    model.mode("ok", route="embeddings", delay=3.0, times=1)
    with embedding_near(model, folder) as service:
        async with service.client() as client:
            await answer(client, "old", FACT)
            await eventually(lambda: recalled(client, dense=False))
            await eventually(lambda: recalled(client, dense=True))
            events = await ask(client, "new", QUESTION)
            assert events[1].data["degraded"] == []
            assert events[1].data["layers"]["recall"]["items"][0]["dense_rank"] is not None
            # It fails again: by words at once, and nothing of the request's text in the log.
            model.mode("500", route="embeddings")
            await answer(client, "old", "My cousin Ottokar breeds zanzibarian herons.")
            events = await ask(client, "new", QUESTION, recall="user")
            assert events[-1].name == "done"
            assert events[1].data["degraded"] == ["embedding"]
            model.mode(route="embeddings")

            async def caught_up() -> bool:
                found = await client.get("/v1/memories", params={"q": "herons"})
                items = found.json()["memories"]
                return bool(items) and items[0]["dense_rank"] is not None

            await eventually(caught_up)
        log = service.log.read_text()
        assert "Valentina" not in log
        assert "zanzibarian" not in log


async def test_an_embedding_endpoint_is_asked_once_for_a_question(
    model: Model, folder: Path
) -> None:
    """One layer retries: a question has a deadline, and the projector has its own back-off."""
    path = "/v1/embeddings"
    with embedding_near(model, folder) as service:
        async with service.client() as client:
            await answer(client, "old", FACT)
            await eventually(lambda: recalled(client, dense=True))
            for mode in ("500", "429", "reset"):
                model.mode(mode, route="embeddings")
                before = len(model.requests(path))
                asked = await client.post("/v1/sessions/new/context", json={"query": QUESTION})
                assert asked.json()["receipt"]["degraded"] == ["embedding"]
                assert len(model.requests(path)) == before + 1, mode
