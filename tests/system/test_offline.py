"""S11: with the defaults no connection leaves the machine; everything works without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from system.process import ROOT, environment

# Loopback is down in a new network namespace; `ip` may be missing.
LOOPBACK_UP = """
import fcntl, socket, struct, sys, os
with socket.socket() as s:
    name = b"lo".ljust(16, b"\\0")
    flags = struct.unpack("16sh", fcntl.ioctl(s, 0x8913, name + bytes(16))[:18])[1]
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", name, flags | 1))
os.execv(sys.argv[1], sys.argv[1:])
"""

SESSION = """
import asyncio, json, sys, time
from pathlib import Path
from system.process import serving
from system.streams import ask
from waiting import eventually

async def main(folder):
    with serving(folder, projector={"interval": "50ms"}) as service:
        async with service.client() as client:
            async def ready():
                found = (await client.get("/health/ready")).json()
                return found if found["embedding"]["status"] == "ok" else None
            ready_ = await eventually(ready)
            told = await ask(client, "one", "My brother Leopold repairs church organs in Graz.")
            async def recalled():
                found = await client.get("/v1/memories", params={"q": "musical instruments"})
                return [m for m in found.json()["memories"] if m["dense_rank"]]
            await eventually(recalled)
            asked = await ask(client, "two", "Who mends musical instruments in the church?")
            page = await client.get("/schema/openapi.json")
        print(json.dumps({
            "ready": ready_, "names": [e.name for e in asked], "receipt": asked[1].data,
            "answer": "".join(e.data["text"] for e in asked if e.name == "token"),
            "schema": page.status_code, "log": service.log.read_text(),
        }))

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def without_a_network() -> list[str]:
    """What to put before a command, so that it sees nothing but loopback."""
    unshare = shutil.which("unshare")
    inner = [sys.executable, "-c", LOOPBACK_UP]
    for flags in (["-rn"], ["-n"]):
        prefix = [unshare or "unshare", *flags, *inner]
        try:
            found = subprocess.run(
                [*prefix, sys.executable, "-c", "print(1)"],
                capture_output=True, text=True, timeout=20, check=False,
            )  # fmt: skip
        except OSError:
            break
        if found.stdout == "1\n":
            return prefix
    pytest.skip("this machine forbids network namespaces")


def run(
    prefix: list[str], *arguments: str, folder: Path, within_seconds: float
) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir()
    paths = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=folder, env=environment(HOME=str(home), PYTHONPATH=paths), capture_output=True,
        text=True, timeout=within_seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in home.rglob("*") if path.is_file()]
    assert not written, f"something was left in the home folder: {written}"
    return done


def test_the_namespace_really_has_no_network(without_a_network: list[str], folder: Path) -> None:
    code = (
        "import socket\n"
        "with socket.socket() as s:\n    s.bind(('127.0.0.1', 0))\n"
        "try:\n    socket.create_connection(('192.0.2.1', 80), timeout=3)\n"
        "except OSError as error:\n    print(type(error).__name__, error.errno)\n"
    )
    done = run(without_a_network, "-c", code, folder=folder, within_seconds=30)
    assert "101" in done.stdout, "network is unreachable"


def test_the_first_session_works_with_dense_recall_and_exact_tokens(
    without_a_network: list[str], folder: Path
) -> None:
    done = run(
        without_a_network, "-c", SESSION, str(folder / "data"), folder=folder, within_seconds=90
    )
    told = json.loads(done.stdout)
    assert told["ready"]["embedding"]["status"] == "ok"
    assert told["ready"]["degraded"] is False
    assert told["names"][-1] == "done"
    assert told["receipt"]["estimated"] is False
    assert told["receipt"]["degraded"] == []
    (best, *_) = told["receipt"]["layers"]["recall"]["items"]
    assert best["session_id"] == "one"
    assert best["dense_rank"] is not None
    assert "Leopold" in told["answer"]
    assert told["schema"] == 200
    levels = {json.loads(line)["level"] for line in told["log"].splitlines()}
    assert levels == {"info"}, "nothing was even tried"


def test_recall_is_measured_without_a_network(without_a_network: list[str], folder: Path) -> None:
    data = ROOT / "evals" / "data" / "small_en.json"
    if not data.exists():
        pytest.skip("the small data sets are not there")
    run(
        without_a_network, "-m", "evals", "recall", "--data", str(data), "--budgets", "512",
        "--out", "out", folder=folder, within_seconds=120,
    )  # fmt: skip
    report = json.loads((folder / "out" / "report.json").read_text())
    (dataset,) = report["datasets"]
    assert dataset["budgets"]["512"]["recall"] > 0.5
    assert "ready" in json.dumps(report), "with the embedding model"
