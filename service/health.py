"""`/health/live` and `/health/ready`: each part really asked, each named."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from litestar import Controller, Response, get
from litestar.di import NamedDependency

from memory.errors import StrataError
from service.lifespan import Services

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
        red = parts["store"]["status"] != "ok" or services.producers.draining
        degraded = any(part["status"] not in ("ok", "off") for part in parts.values())
        status = "stopping" if services.producers.draining else "down" if red else "ready"
        return Response(
            {"status": status, "degraded": degraded, **parts}, status_code=503 if red else 200
        )


async def probe(services: Services) -> dict[str, dict[str, Any]]:
    """Store, index, embedding, model and projection, each with its status."""
    strata = services.strata
    behind: int | None = None
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await strata.store.ping()
            behind = await strata.projection.behind()
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
    model = strata.model
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
        "projection": {
            "status": "ok" if behind is not None else "unknown",
            "behind": behind,
        },
    }


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
