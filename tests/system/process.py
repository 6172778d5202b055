"""Real processes for the tests: the service and the fake model server, on loopback, port 0."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from waiting import PATIENCE_SECONDS, wait_for

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process' environment without any configuration of Strata, a model or a proxy."""
    foreign = ("STRATA_", "OPENAI_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def variables(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """`{"budget": {"context_tokens": 1}}` as `STRATA_BUDGET__CONTEXT_TOKENS=1`."""
    return {
        f"STRATA_{group}__{key}".upper(): str(value)
        for group, keys in groups.items()
        for key, value in keys.items()
    }


class Child:
    """A child process. What it writes to stderr is in `log`; it comes through a pipe, so that
    limits on the child's files do not touch its log."""

    def __init__(
        self, arguments: list[str], *, folder: Path, env: Mapping[str, str], log: Path, **more: Any
    ) -> None:
        self.log = log
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )
        self._copying = threading.Thread(target=self._copy, daemon=True)
        self._copying.start()

    def _copy(self) -> None:
        assert self.process.stderr is not None
        with self.log.open("ab") as file:
            while part := os.read(self.process.stderr.fileno(), 65536):
                file.write(part)
                file.flush()

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.running():
            self.process.send_signal(number)

    def wait(self, within_seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code."""
        code = self.process.wait(within_seconds)
        self._copying.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]


class Model(Child):
    """The fake model server."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            [sys.executable, "-m", "evals.fake_openai", "--port", "0"],
            folder=folder,
            env=environment(),
            log=folder / "model.log",
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert told, self.log.read_text()
        self.url = f"http://127.0.0.1:{json.loads(told)['port']}"
        self.client = httpx.Client(base_url=self.url, trust_env=False)

    def mode(self, mode: str = "ok", **more: Any) -> None:
        self.client.post("/mode", json={"mode": mode, **more}).raise_for_status()

    def requests(self, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
        return [r for r in self.client.get("/requests").json() if r["path"] == path]

    def forget(self) -> None:
        """Answer normally again, with an empty log."""
        for route in ("chat", "embeddings", "models"):
            self.mode(route=route)
        self.client.delete("/requests")

    def stop(self) -> None:
        self.client.close()
        self.kill()


class Qdrant(Child):
    """The test server that speaks Qdrant's REST protocol, over files in `folder`."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder
        super().__init__(
            [sys.executable, "-m", "servers.qdrant", "--port", str(port), "--folder", str(folder)],
            folder=folder,
            env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            log=folder / "qdrant.log",
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert told, self.log.read_text()
        self.port: int = json.loads(told)["port"]
        self.url = f"http://127.0.0.1:{self.port}"


class Service:
    """`python -m service serve` in `folder`, configured by `groups`; can be started again."""

    def __init__(
        self, folder: Path, *, fake: Model | None = None, env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (), arguments: tuple[str, ...] = (),
        **groups: Mapping[str, Any],
    ) -> None:  # fmt: skip
        if fake is not None:
            groups = {**groups, "model": {"base_url": f"{fake.url}/v1", **groups.get("model", {})}}
        self.folder = folder
        self.log = folder / "service.log"
        self.env = environment(**variables(groups), **(env or {}))
        self._prefix = prefix
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        self.child = Child(
            [
                *self._prefix,
                sys.executable,
                "-m",
                "service",
                "serve",
                "--port",
                "0",
                *self._arguments,
            ],
            folder=self.folder,
            env=self.env,
            log=self.log,
        )
        told = wait_for(self._told, what="serving")
        self.started_in_seconds = time.monotonic() - began
        self.url = f"http://127.0.0.1:{told['port']}"

    def _told(self) -> dict[str, Any] | None:
        assert self.child.running(), f"ended while starting: {self.log.read_text()}"
        try:
            told = json.loads((self.folder / ".strata" / "serve.json").read_text())
        except (OSError, ValueError):
            return self._told_in_the_log()
        return told if told["pid"] == self.child.pid else None

    def _told_in_the_log(self) -> dict[str, Any] | None:
        """Without a data folder there is no other place."""
        for event in self.events("serving"):
            return {"port": int(event["url"].rpartition(":")[2])}
        return None

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of this name in its log since it was started."""
        if not self.log.exists():
            return []
        *lines, _ = self.log.read_bytes()[self._log_from :].split(b"\n")
        events = (json.loads(line) for line in lines if line[:1] == b"{")
        return [event for event in events if event.get("event") == name]

    @property
    def pid(self) -> int:
        return self.child.pid

    def client(self, user: str | None = None, **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options(user, more))

    def sync_client(self, user: str | None = None, **more: Any) -> httpx.Client:
        return httpx.Client(**self._options(user, more))

    def _options(self, user: str | None, more: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-User-Id": user} if user else {}
        options = {"base_url": self.url, "headers": headers, "timeout": PATIENCE_SECONDS}
        return {**options, "trust_env": False, **more}

    def terminate(self, within_seconds: float = PATIENCE_SECONDS) -> int:
        self.child.signal(signal.SIGTERM)
        return self.child.wait(within_seconds)

    def kill(self) -> None:
        self.child.kill()

    def limit_files(self, size_bytes: int | None) -> None:
        """No file of the service may grow beyond this (None lifts the limit again)."""
        soft = resource.RLIM_INFINITY if size_bytes is None else size_bytes
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def stored_bytes(self) -> bytes:
        """Every byte of every file of its data folder."""
        folder = self.folder / ".strata"
        return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Service]:
    """A service that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    service = Service(folder, **options)
    try:
        yield service
    finally:
        service.kill()


@contextmanager
def modelling(folder: Path) -> Iterator[Model]:
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(folder)
    try:
        yield model
    finally:
        model.stop()


def strata(
    *arguments: str, folder: Path, text: str = "", within_seconds: float = PATIENCE_SECONDS,
    **groups: Mapping[str, Any],
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """One command of the command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=folder,
        env=environment(**variables(groups)),
        input=text,
        capture_output=True,
        text=True,
        timeout=within_seconds,
        check=False,
    )


_MANY = """
import contextlib, io, json, os, resource, sys
from typer.testing import CliRunner
from service.cli.main import app
calls, text = json.load(sys.stdin)
for folder, arguments in calls:
    os.chdir(folder)
    result = CliRunner().invoke(app, arguments, input=text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    said = {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    print(json.dumps({**said, "peak": peak}), flush=True)
"""


def strata_many(
    calls: Sequence[tuple[Path, Sequence[str]]], *, text: str = "", **groups: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Commands one after the other in one process: code, stdout and stderr of each, and `peak`,
    the most memory in MB that the process had used by then."""
    done = subprocess.run(
        [sys.executable, "-c", _MANY],
        env=environment(**variables(groups)),
        input=json.dumps([[(str(folder), list(given)) for folder, given in calls], text]),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
