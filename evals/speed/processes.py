"""The processes that are measured: a service, and a model server for it, each in a folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
ANSWER = (
    "That sounds like a good walk. A second shop is a big step for Anna; the place near the "
    "station will bring her many early guests, and Biscuit will not mind another bakery."
)


class Service(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    seconds_to_port: float


@asynccontextmanager
async def model_server(folder: Path) -> AsyncIterator[str]:
    process = _spawn("evals.fake_openai", "--port", "0", cwd=folder, log=folder / "model.log")
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        url = f"http://127.0.0.1:{json.loads(line)['port']}"
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.post(f"{url}/mode", json={"mode": "ok", "text": ANSWER})
        yield f"{url}/v1"
    finally:
        _stop(process)


@asynccontextmanager
async def service(
    folder: Path, model_url: str | None, variables: Mapping[str, str], *, checkout: Path = ROOT
) -> AsyncIterator[Service]:
    """A service process in `folder` over a model server (None: the offline model), without
    embedding. Another checkout runs with the interpreter of its own .venv."""
    configured = {
        "STRATA_EMBEDDING__PROVIDER": "none",
        "STRATA_SERVER__PORT": "0",
        **({"STRATA_MODEL__BASE_URL": model_url} if model_url else {}),
        **variables,
    }
    log = folder / "service.log"
    started = time.perf_counter()
    process = _spawn("service", "serve", cwd=folder, log=log, checkout=checkout, **configured)
    try:
        url = await _serving(log, process)
        yield Service(process, url, log, time.perf_counter() - started)
    finally:
        _stop(process)


def _spawn(
    module: str, *arguments: str, cwd: Path, log: Path, checkout: Path = ROOT, **variables: str
) -> subprocess.Popen[bytes]:
    """A module of this project as a process; its standard error goes to `log`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("STRATA_", "OPENAI_"))}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [python_of(checkout), "-m", module, *arguments],
            cwd=cwd,
            env={**inherited, **variables, "PYTHONPATH": str(checkout)},
            stdout=subprocess.PIPE,
            stderr=errors,
        )


def python_of(checkout: Path) -> str:
    """The interpreter that has what a checkout needs."""
    return sys.executable if checkout == ROOT else str(checkout / ".venv" / "bin" / "python")


async def _serving(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address in its log."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and (event := json.loads(line)).get("event") == "serving":
                return str(event["url"])
        await asyncio.sleep(0.01)
    raise OSError("the service did not open its port; is its configuration right?")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=DEADLINE_SECONDS)
    if process.stdout is not None:
        process.stdout.close()
