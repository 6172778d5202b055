"""S7: no message text, session, user, title, speaker, metadata, query or key in any log line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from waiting import eventually

from system.process import Model, serving, strata
from system.streams import answer, ask

CANARY = "kumquat"


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_no_log_line_holds_what_a_user_said(model: Model, folder: Path, level: str) -> None:
    """Over a whole run with failures of the model, the embedding endpoint, the store and clients,
    where the servers' errors repeat what they were sent."""
    with serving(
        folder, fake=model,
        model={"api_key": f"sk-{CANARY}", "max_retries": 1, "first_token_timeout": "500ms"},
        embedding={"provider": "openai", "name": CANARY, "base_url": f"{model.url}/v1",
                   "dimensions": 64, "api_key": f"sk-{CANARY}"},
        budget={"window_tokens": 300, "summary_tokens": 100},
        projector={"interval": "50ms", "sweep_interval": "200ms"},
        server={"log_level": level},
    ) as service:  # fmt: skip
        session = f"{CANARY}-session"
        url = f"/v1/sessions/{session}"
        async with service.client(f"{CANARY}-user") as client:
            for n in range(6):
                await answer(client, session, f"My {CANARY} number {n} " + "is quite ripe " * 12,
                             metadata={CANARY: CANARY}, system=f"Speak of {CANARY}s.")  # fmt: skip
            speaker = {"role": "user", "content": CANARY, "speaker": CANARY, "id": CANARY}
            await client.post(f"{url}/messages", json={"messages": [speaker]})
            await client.patch(url, json={"title": CANARY, "metadata": {CANARY: 1}})
            await client.get("/v1/memories", params={"q": f"which {CANARY}?"})
            for route in ("chat", "embeddings"):
                for mode in ("400", "500", "bad_json", "reset", "hang"):
                    if (route, mode) != ("embeddings", "hang"):
                        model.mode(mode, route=route, times=4)
                        await ask(client, session, f"{CANARY} {mode}?")
                        model.mode(route=route)
            await client.get(f"/{CANARY}?{CANARY}={CANARY}", headers={"X-Other": CANARY})
            await client.get(f"/v1/turns/{CANARY}")
            for content in (f"{CANARY}{{", f'{{"{CANARY}": 1}}', f'{{"message": ["{CANARY}"]}}'):
                await client.post(f"{url}/turns", content=content)
            headers = {"Content-Type": "application/json"}
            await client.post(f"{url}/turns", content=f'"{CANARY}', headers=headers)
            await client.post(f"{url}/context", json={"query": CANARY, CANARY: CANARY})
            service.limit_files(1)
            failed = await client.post(f"{url}/turns", json={"message": CANARY})
            assert failed.status_code == 503
            service.limit_files(None)
            await client.delete(url)

            async def swept() -> bool:
                return (await client.get("/v1/sessions")).json()["sessions"] == []

            await eventually(swept)
        assert service.terminate() == 0
        log = service.log.read_text()
    for line in log.splitlines():
        assert CANARY not in line.lower(), line
        json.loads(line)
    assert '"turn.model_call"' in log
    assert '"model.failed"' in log
    [failed_to_store] = [r for r in service.child.lines() if r["event"] == "request.failed"]
    assert failed_to_store["detail"].startswith("SQLite: ")  # an operator learns why
    if level == "info":
        assert "sk-" not in log


def test_a_configuration_is_shown_without_its_secrets(folder: Path) -> None:
    shown = strata(
        "config", folder=folder, model={"api_key": f"sk-{CANARY}"},
        embedding={"api_key": f"sk-{CANARY}", "provider": "openai"},
    )  # fmt: skip
    assert shown.returncode == 0
    assert CANARY not in shown.stdout + shown.stderr
    assert shown.stdout.count('"********"') == 2
