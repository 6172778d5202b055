"""The turns that are measured, all of one user, and what the service's log says of them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx

from evals.quality.datasets import committed
from memory.interchange.conversations import load_conversations

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.005


def user_texts() -> list[str]:
    """What the user of the committed English conversation says: varied, as people talk."""
    data = next(path for path in committed() if path.stem == "small_en")
    return [
        turn.text
        for conversation in load_conversations(data)
        for session in conversation.sessions
        for turn in session.turns
        if turn.role == "user"
    ]


async def take_turn(
    http: httpx.AsyncClient, texts: list[str], session: str, n: int, request_id: str
) -> dict[str, Any]:
    """The turn as the service answers it."""
    response = await http.post(
        f"/v1/sessions/{session}/turns",
        json={"message": f"{texts[n % len(texts)]} ({n})", "stream": False},
        headers={"X-Request-Id": request_id},
    )
    turn: dict[str, Any] = response.raise_for_status().json()
    return turn


async def quiet(http: httpx.AsyncClient) -> None:
    """Until the projections have caught up. Short pauses, and one in any case: a processor that
    has slept is slower for a while, and every measured turn is to begin alike."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        ready: dict[str, Any] = (await http.get("/health/ready")).json()
        if ready["projection"]["behind"] == 0:
            return
    raise OSError("the projections did not catch up")


def model_calls(log: Path) -> dict[str, float]:
    """Milliseconds from request to model call, by request id."""
    found = {}
    for line in log.read_bytes().splitlines():
        event = json.loads(line)
        if event.get("event") == "turn.model_call":
            found[event["request_id"]] = event["elapsed_ms"]
    return found
