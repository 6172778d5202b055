"""Whether each part works: asked itself, with a deadline, and named."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from memory import Strata
from memory.breaker import Breaker
from memory.errors import StrataError
from service.services import Services

PROBE_SECONDS = 2.0
MODEL_PROBE_EVERY_SECONDS = 10.0


async def probe(services: Services) -> dict[str, dict[str, Any]]:
    """Store, index, embedding, model, summary and projection, each with a `status` and, where it
    is not "ok", what that means."""
    strata, offline = services.strata, services.config.current.model.offline
    projection: dict[str, Any] = {"status": "unknown", "behind": None}
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await strata.store.ping()
            projection = await _projection(strata)
        store = {"status": "ok"}
    except (StrataError, TimeoutError) as error:
        store = {"status": "down", "reason": type(error).__name__}
    return {
        "store": store,
        "index": await _index(strata),
        "embedding": _embedding(strata),
        "model": await _model(services),
        "summary": _with_breaker(
            {"status": "ok", "by": "extracts" if offline else "the model"},
            strata.summaries.breaker,
            "the model fails: summaries are extracts",
        ),
        "projection": projection,
    }


async def _index(strata: Strata) -> dict[str, Any]:
    if strata.index is None:
        return {"status": "off", "reason": "index.url = none: no recall"}
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            index = {"status": "ok", "points": await strata.index.count()}
    except (StrataError, TimeoutError) as error:
        index = {"status": "down", "reason": type(error).__name__}
    return _with_breaker(index, strata.recall.breaker, "searches fail: answers go without")


def _embedding(strata: Strata) -> dict[str, Any]:
    model = strata.embeddings
    if model.state == "ready":
        return {"status": "ok", "model": model.identity}
    reason = {"reason": model.reason} if model.reason else {}
    return {"status": model.state, "recall": "by words", **reason}


async def _projection(strata: Strata) -> dict[str, Any]:
    """How many sessions it is behind, and how many messages it could not take."""
    state = await strata.projector.state()
    return {
        "status": "ok" if not state.poisoned else "poisoned",
        "behind": state.pending,
        "lag_seconds": round(state.lag_seconds, 3),
        "poisoned": state.poisoned,
    }


def _with_breaker(part: dict[str, Any], breaker: Breaker, reason: str) -> dict[str, Any]:
    if breaker.state != "closed" and part["status"] == "ok":
        part = {**part, "status": "failing", "reason": reason}
    return {**part, "breaker": breaker.state}


async def _model(services: Services) -> dict[str, Any]:
    """Asks the endpoint for its list of models, now and then; any answer but 401, 403 and 5xx
    counts as "ok"."""
    config = services.config.current.model
    if config.offline:
        return {"status": "ok", "name": services.model_name, "reason": "no key and no base_url"}
    at, status = services.probes.get("model", (-1e9, ""))
    if time.monotonic() - at > MODEL_PROBE_EVERY_SECONDS:
        url = (config.base_url or "https://api.openai.com/v1").rstrip("/") + "/models"
        headers = {"Authorization": f"Bearer {config.key.get_secret_value()}"} if config.key else {}
        try:
            async with httpx.AsyncClient(timeout=PROBE_SECONDS) as client:
                code = (await client.get(url, headers=headers)).status_code
            status = "ok" if code < 500 and code not in (401, 403) else f"answers {code}"
            if code in (401, 403):
                status += ": see model.api_key"
        except httpx.HTTPError as error:
            status = f"unreachable ({type(error).__name__}): see model.base_url"
        services.probes["model"] = (time.monotonic(), status)
    if status == "ok":
        return {"status": "ok", "name": services.model_name}
    return {"status": "down", "name": services.model_name, "reason": status}
