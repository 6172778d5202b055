"""R17, docs/operations.md: what keeps failing is set aside and counted: ready, /metrics, log."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually, wait_for

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import answer, ask, asking, read_until
from system.test_workers import workers_of

Groups = dict[str, dict[str, Any]]


async def scraped(client: httpx.AsyncClient) -> dict[str, float]:
    """Every sample by its name and labels."""
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.name.startswith("strata_") for family in families)
    return {
        sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_metrics_tell_states_and_nobody(model: Model, folder: Path) -> None:
    """S2, S7: no user, no session and no text in a name or a label."""
    groups = {"embedding": BY_WORDS, "projector": {"interval": "50ms"}}
    with serving(folder, fake=model, **groups) as service:
        user = "kumquat-user"
        async with service.client(user) as client, service.client(user) as other:
            await answer(client, "kumquat-session", "My kumquat is orange.")
            found = await scraped(client)
            for name in ("projection_behind_sessions", "projection_lag_seconds",
                         "projection_poisoned_messages", "open_streams",
                         "breakers_open,part=recall", "breakers_open,part=summary"):  # fmt: skip
                assert f"strata_{name}" in found
            assert found["strata_recall_seconds_count"] >= 1

            async def quiet() -> bool:
                found = await scraped(client)
                return found["strata_projection_behind_sessions"] == 0 and (
                    found["strata_projection_lag_seconds"] == 0
                )

            await eventually(quiet)
            ready = (await client.get("/health/ready")).json()["projection"]
            assert ready == {"status": "ok", "behind": 0, "lag_seconds": 0.0, "poisoned": 0}

            model.mode("hang_after", chunks=2, text="one two three four")
            async with asking(other, "kumquat-session", "count") as stream:
                await read_until(stream, "token")
                assert (await scraped(client))["strata_open_streams"] == 1

            async def closed() -> bool:
                return (await scraped(client))["strata_open_streams"] == 0

            await eventually(closed)
            assert "kumquat" not in (await client.get("/metrics")).text


async def test_workers_tell_of_one_another(model: Model, folder: Path, shared: Groups) -> None:
    shared = {**shared, "server": {"workers": 2}}
    with serving(folder, fake=model, **shared) as service:
        wait_for(lambda: len(workers_of(service)) == 2)
        async with service.client(headers={"Connection": "close"}) as client:
            for n in range(12):
                await answer(client, f"s{n}", "hello")
            counts = [(await scraped(client))["strata_recall_seconds_count"] for _ in range(6)]
            assert counts == sorted(counts), "whoever answers tells of all"
            assert counts[0] >= 12
            model.mode("held", text="one two three four five six seven eight")
            asked = [asyncio.create_task(ask(client, f"s{n}", "count")) for n in range(4)]

            async def all_open() -> bool:
                return (await scraped(client))["strata_open_streams"] == 4

            await eventually(all_open)
            model.mode()  # lets them go
            await asyncio.gather(*asked)
        folders = set(re.findall(r"strata-metrics-\w+", environment_of(service)))
        assert len(folders) == 1
        assert service.terminate(40) == 0
        assert not Path("/tmp", *folders).exists()


def environment_of(service: Service) -> str:
    pid = workers_of(service)[0]
    return Path(f"/proc/{pid}/environ").read_text()


async def test_a_poisoned_message_is_visible_everywhere_and_after_a_restart(
    model: Model, folder: Path
) -> None:
    """R17, with an index that is away for a while before: that poisons nothing."""
    # The fake endpoint refuses what has the marker in it.
    model.mode("marker", route="embeddings", text="cursedword")
    groups: Groups = {
        "embedding": {"provider": "openai", "name": "near", "base_url": f"{model.url}/v1"},
        "projector": {"interval": "50ms"},
        "recall": {"deadline": "2s"},
    }
    with serving(folder, fake=model, **groups) as service:
        async with service.client() as client:
            await eventually(lambda: loaded(client))
            await record(client, "poisoned", "my cursedword gnome is green")
            await record(client, "other", "my penguin is blue")
            await eventually(lambda: found(client, "penguin"))

            async def poisoned() -> bool:
                # Each message wakes its session, so that it need not wait for its back-off.
                await record(client, "poisoned", "and so on")
                ready = (await client.get("/health/ready")).json()
                return ready["projection"]["poisoned"] == 1

            await eventually(poisoned)
            await eventually(lambda: found(client, "gnome", dense=False))
            assert (await scraped(client))["strata_projection_poisoned_messages"] == 1
            (line,) = service.events("projection.poisoned")
            assert line["reason"] == "embedding"
            assert re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{32}:\d{10}\.u", line["message"])
            assert "gnome" not in service.log.read_text()
            events = await ask(client, "other", "hello?")
            assert events[-1].name == "done"
        service.kill()
        service.start()
        async with service.client() as client:
            ready = (await client.get("/health/ready")).json()
            assert ready["projection"]["status"] == "poisoned"
            assert ready["degraded"] is True
            assert ready["status"] == "ready"
            assert (await client.delete("/v1/sessions/poisoned")).status_code == 200
            ready = (await client.get("/health/ready")).json()
            assert ready["projection"]["poisoned"] == 0


async def record(client: httpx.AsyncClient, session: str, text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}]}
    response = await client.post(f"/v1/sessions/{session}/messages", json=body)
    assert response.status_code == 201, response.text


async def loaded(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["embedding"]["status"] == "ok")


async def found(client: httpx.AsyncClient, word: str, *, dense: bool = True) -> bool:
    answered = (await client.get("/v1/memories", params={"q": word})).json()["memories"]
    items = [item for item in answered if word in item["content"]]
    return bool(items) and (not dense or items[0]["dense_rank"] is not None)
