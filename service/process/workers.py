"""Several workers behind one address: processes that share a listening socket and no state.

The process of `Workers` answers no request: it opens the socket, starts the workers, replaces one
that dies, and passes SIGTERM on. Each worker ends by itself when that process is gone.
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
    """A socket that listens there. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening


def http_url(host: str, port: int) -> str:
    """The URL of an IPv4 or IPv6 address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Workers:
    """`server.workers` processes, each `serve` with the file `config`."""

    def __init__(self, settings: Settings, *, config: Path | None) -> None:
        self._settings = settings
        self._arguments = ["serve", *(["--config", str(config)] if config else [])]
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._served = False
        self._metrics = ""  # the folder in which the workers' metrics are

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
                for process in self._running.values():  # left only by a failure of this process
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
                self._stop()  # it could not start, so none can
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
                sent = await asyncio.get_running_loop().sock_recv(ours, 1)
                if sent == SERVING:
                    self._log_serving(number, process.pid)
                code = await process.wait()
            finally:
                self._running.pop(process.pid, None)
                # Its gauges count no longer.
                mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]
        return sent == SERVING, code

    def _log_serving(self, number: int, pid: int) -> None:
        log.info("worker.serving", worker=number, pid=pid)
        if not self._served:
            self._served = True
            log.info("serving", url=self._url, workers=self._settings.server.workers)


class Parent:
    """A worker's side of the process that started it: the socket on which both listen, and a line
    that closes with either. `descriptors` are those of the two, as `--worker` has them."""

    def __init__(self, descriptors: str) -> None:
        listening, line = (int(part) for part in descriptors.split(","))
        self.listening = socket.socket(fileno=listening)
        self._line = socket.socket(fileno=line)

    def serving(self) -> None:
        """Report that this worker answers requests."""
        self._line.send(SERVING)

    async def gone(self) -> None:
        """Return when that process has ended."""
        self._line.setblocking(False)
        while await asyncio.get_running_loop().sock_recv(self._line, 1):
            pass
