"""The process that listens: uvicorn, but for how a service of streams stops.

On SIGTERM the port stays open while answers drain (ready is red, new turns get 503); when the
last has ended or `server.grace` is over, what is left is stored as partial and ends cleanly.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import structlog
import uvicorn

from memory.stores import file_path
from service.app import create_app
from service.config.settings import Settings
from service.config.shown import without_password
from service.process.connection import Connection
from service.process.workers import Parent, http_url
from service.services import Services, open_services

log = structlog.get_logger("strata")
CLOSE_SECONDS = 5


def serve_file(settings: Settings) -> Path | None:
    """Where a running `serve` writes its address for the other commands; None without a data
    folder."""
    path = file_path(settings.store.url, "sqlite")
    return path.parent / "serve.json" if path else None


class _Server(uvicorn.Server):
    """uvicorn, which on a signal drains the answers before it closes the port."""

    def __init__(
        self, config: uvicorn.Config, services: Services, began: float, parent: Parent | None
    ) -> None:
        super().__init__(config)
        self._services = services
        self._began = began
        self._parent = parent
        self._watching: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup([self._parent.listening] if self._parent else None)
        if not self.started:
            return
        if self._parent is not None:
            self._parent.serving()
            self._watching = asyncio.create_task(self._drain_with(self._parent))
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        settings, model = self._services.config.current, self._services.strata.embeddings
        if path := serve_file(settings):
            path.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}))
        log.info(
            "serving",
            url=http_url(host, port),
            store=without_password(settings.store.url),
            index=without_password(settings.index.url),
            model=self._services.model_name,
            offline=settings.model.offline,
            embedding=model.state,
            recall="by meaning and words" if model.state == "ready" else "by words until loaded",
            seconds=round(time.perf_counter() - self._began, 2),
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is not None and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True  # Ctrl-C for the second time
            return
        # Not uvicorn's own way: it would raise the signal again once the port is closed, and so
        # end the process before the stores are.
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    async def _drain_with(self, parent: Parent) -> None:
        await parent.gone()
        self._begin_to_drain()

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        log.info("draining", turns=len(self._services.answers))
        await self._services.drain()
        self.should_exit = True


async def _freeze(services: Services) -> None:
    """Exclude what is loaded for good from garbage collection: walking through it takes a tenth of
    a second, in which no turn goes on."""
    await asyncio.gather(asyncio.shield(services.chat), services.strata.embeddings_loaded.wait())
    gc.freeze()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which takes a tenth less of a turn's CPU, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def serve(settings: Settings, *, parent: Parent | None = None) -> None:
    """Serve until a signal, or, as a worker, until its parent is gone. Raises ConfigError,
    StoreUnavailable before the port opens."""
    began = time.perf_counter()
    async with open_services(settings) as services:
        config = uvicorn.Config(
            create_app(settings, services),
            host=settings.server.host,
            port=settings.server.port,
            http=Connection,
            lifespan="on",
            log_config=None,
            access_log=False,
            # Anybody can send a header with an address; nothing here needs one.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        server = _Server(config, services, began, parent)
        freezing = asyncio.create_task(_freeze(services))
        try:
            await server.serve()
        finally:
            freezing.cancel()
            with suppress(asyncio.CancelledError):
                await freezing
            if path := serve_file(settings):
                path.unlink(missing_ok=True)
        if not server.started:
            raise SystemExit(1)
    log.info("stopped")
