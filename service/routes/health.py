"""`/health/live` and `/health/ready`, and `/metrics` beside them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from memory.errors import StrataError
from memory.projections.projector import ProjectionState
from service.observability.probes import PROBE_SECONDS, probe
from service.services import Services


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
        """Of all workers. Of the projections only while the store answers."""
        strata = services.strata
        services.metrics.refresh(open_streams=len(services.answers), strata=strata)
        state: ProjectionState | None = None
        with suppress(StrataError, TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                state = await strata.projector.state()
        content = await asyncio.to_thread(services.metrics.text, state)
        return Response(content, media_type=CONTENT_TYPE_LATEST)
