"""`/health/live`, `/health/ready`: each part really asked, each named. `/metrics` beside them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import httpx
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from memory import Strata
from memory.breaker import Breaker
from memory.errors import StrataError
from memory.projections.projector import State
from service.services import Services

PROBE_SECONDS = 2.0
MODEL_PROBE_EVERY_SECONDS = 10.0


class Health(Controller):
    path = "/health"
    tags = ("health",)

    @get("/live", summary="The process is up")
    async def live(self) -> dict[str, str]:
        return {"status": "up"}

    @get("/ready", summary="Whether turns can be taken, and what is degraded")
    async def ready(self, services: NamedDependency[Services]) -> Response[dict[str, Any]]:
        """503 while stopping or without the store; everything else only degrades."""
        parts = await probe(services)
        red = parts["store"]["status"] != "ok" or services.answers.draining
        degraded = any(part["status"] not in ("ok", "off") for part in parts.values())
        status = "stopping" if services.answers.draining else "down" if red else "ready"
        return Response(
            {"status": status, "degraded": degraded, **parts}, status_code=503 if red else 200
        )


class Scrape(Controller):
    path = "/metrics"
    tags = ("health",)

    @get("/", media_type="text/plain", summary="Metrics for Prometheus")
    async def show(self, services: NamedDependency[Services]) -> Response[bytes]:
        """Of all workers. Without the store, without what the projection has to do."""
        strata = services.strata
        services.metrics.refresh(open_streams=len(services.answers), strata=strata)
        state: State | None = None
        with suppress(StrataError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                state = await strata.projector.state()
        content = await asyncio.to_thread(services.metrics.text, state)
        return Response(content, media_type=CONTENT_TYPE_LATEST)


async def probe(services: Services) -> dict[str, dict[str, Any]]:
    """Store, index, embedding, model and projection, each with its status."""
    strata = services.strata
    projection: dict[str, Any] = {"status": "unknown", "behind": None}
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await strata.store.ping()
            projection = await _projection(strata)
        store = {"status": "ok"}
    except (StrataError, TimeoutError) as error:
        store = {"status": "down", "reason": type(error).__name__}
    index: dict[str, Any] = {"status": "off", "reason": "index.url = none: no recall"}
    if strata.index is not None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                index = {"status": "ok", "points": await strata.index.count()}
        except (StrataError, TimeoutError) as error:
            index = {"status": "down", "reason": type(error).__name__}
        index = _with_breaker(index, strata.recall.breaker, "searches fail: answers go without")
    model = strata.embeddings
    embedding: dict[str, Any] = {"status": {"ready": "ok"}.get(model.state, model.state)}
    if model.state == "ready":
        embedding["model"] = model.identity
    else:
        embedding["recall"] = "by words"
        if model.reason:
            embedding["reason"] = model.reason
    return {
        "store": store,
        "index": index,
        "embedding": embedding,
        "model": await _probe_model(services),
        "summary": _with_breaker(
            {"status": "ok", "by": "extracts" if services.settings.model.offline else "the model"},
            strata.summaries.breaker,
            "the model fails: summaries are extracts",
        ),
        "projection": projection,
    }


async def _projection(strata: Strata) -> dict[str, Any]:
    """What it has not seen yet, and what it cannot take: both say so and stop nothing."""
    state = await strata.projector.state()
    return {
        "status": "ok" if not state.poisoned else "poisoned",
        "behind": state.behind,
        "lag_seconds": round(state.lag_seconds, 3),
        "poisoned": state.poisoned,
    }


def _with_breaker(part: dict[str, Any], breaker: Breaker, reason: str) -> dict[str, Any]:
    if breaker.state != "closed" and part["status"] == "ok":
        part = {**part, "status": "failing", "reason": reason}
    return {**part, "breaker": breaker.state}


async def _probe_model(services: Services) -> dict[str, Any]:
    """Asks the endpoint for its list of models; any answer but 401, 403 and 5xx will do."""
    config = services.settings.model
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
