"""Several workers behind one address: processes that share a listening socket and no state.

This process only watches: it opens the socket, starts the workers, replaces one that dies, and
hands SIGTERM on. Each worker ends by itself when this process is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from prometheus_client.multiprocess import mark_process_dead

from service.config.settings import Settings
from service.observability.metrics import SHARED_FOLDER

log = structlog.get_logger("strata.workers")

BACKLOG = 2048
RESTART_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
SERVING = b"s"


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening


def http_url(host: str, port: int) -> str:
    """The URL of an address, which may be one of IPv6."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Workers:
    def __init__(self, settings: Settings, *, config: Path | None) -> None:
        self._settings = settings
        self._arguments = ["serve", *(["--config", str(config)] if config else [])]
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._served = False
        self._metrics = ""  # the folder of the numbers that the workers share

    async def run(self) -> None:
        """Until a signal, or until no worker could ever serve. Raises OSError when the address
        is taken, SystemExit with a worker's code when it could not start."""
        server = self._settings.server
        with listen(server.host, server.port) as listening:
            self._url = http_url(*listening.getsockname()[:2])
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop)
            try:
                with TemporaryDirectory(prefix="strata-metrics-") as self._metrics:
                    codes = await asyncio.gather(
                        *(self._keep(number, listening) for number in range(server.workers))
                    )
            finally:
                for process in self._running.values():  # only after a failure of this process
                    process.kill()
        log.info("stopped", workers=server.workers)
        if not self._served and any(codes):
            raise SystemExit(max(codes))

    def _stop(self) -> None:
        self._stopping = True
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)

    async def _keep(self, number: int, listening: socket.socket) -> int:
        """One worker, and after it the next; returns the last one's exit code."""
        deaths = 0
        while True:
            served, code = await self._one(number, listening)
            if self._stopping:
                return code
            log.warning("worker.ended", worker=number, code=code, served=served)
            if not self._served:
                self._stop()  # it cannot start: neither can the others
                return code or 1
            deaths = 0 if served else deaths + 1
            await asyncio.sleep(RESTART_SECONDS[min(deaths, len(RESTART_SECONDS) - 1)])

    async def _one(self, number: int, listening: socket.socket) -> tuple[bool, int]:
        """Start a worker and wait for its end: whether it ever served, and its exit code."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "service",
                    *self._arguments,
                    "--worker",
                    f"{listening.fileno()},{theirs.fileno()}",
                    pass_fds=(listening.fileno(), theirs.fileno()),
                    env={**os.environ, SHARED_FOLDER: self._metrics},
                )
            self._running[process.pid] = process
            if self._stopping:
                process.send_signal(signal.SIGTERM)
            try:
                told = await asyncio.get_running_loop().sock_recv(ours, 1)
                if told == SERVING:
                    self._tell(number, process.pid)
                code = await process.wait()
            finally:
                self._running.pop(process.pid, None)
                # Its gauges go with it.
                mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]
        return told == SERVING, code

    def _tell(self, number: int, pid: int) -> None:
        log.info("worker.serving", worker=number, pid=pid)
        if not self._served:
            self._served = True
            log.info("serving", url=self._url, workers=self._settings.server.workers)


class Parent:
    """A worker's line to the process that watches it; `--worker LISTENING,LINE` names both."""

    def __init__(self, descriptors: str) -> None:
        listening, line = (int(part) for part in descriptors.split(","))
        self.listening = socket.socket(fileno=listening)
        self._line = socket.socket(fileno=line)

    def serving(self) -> None:
        self._line.send(SERVING)

    async def gone(self) -> None:
        """Return when the watching process has ended."""
        self._line.setblocking(False)
        while await asyncio.get_running_loop().sock_recv(self._line, 1):
            pass
