"""S11: everything but the model's endpoint works with every network but loopback taken away."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from system.process import ROOT, environment, serving, wait_for

ISOLATED = ("unshare", "--map-root-user", "--net")
UP, SET_FLAGS, GET_FLAGS = 1, 0x8914, 0x8913


def _can_isolate() -> bool:
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _can_isolate(), reason="this machine forbids network namespaces: S11")
def test_the_first_session_and_the_evals_need_no_network(tmp_path: Path) -> None:
    """Start, turns, recall from another session, evals: dense recall and exact counts included."""
    done = subprocess.run(
        [*ISOLATED, sys.executable, "-m", "system.test_no_network", str(tmp_path)],
        cwd=tmp_path,
        env={**environment(HOME=str(tmp_path)), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.glob(".cache/**/*telemetry*"))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, GET_FLAGS, request))[1]
        fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh14x", b"lo", flags | UP))


def _session(folder: Path) -> None:
    """Runs inside the namespace."""
    _raise_loopback()
    with socket.socket() as sock:
        sock.settimeout(2)
        assert sock.connect_ex(("192.0.2.1", 80)) != 0, "there must be no way out"
    with serving(folder) as service, service.sync_client() as client:
        ready = wait_for(lambda: _embedded(client), within_seconds=30, what="embedding")
        assert ready["embedding"]["model"].startswith("sentence-transformers/all-MiniLM-L6-v2@")
        for session, text in (("a", "My dog is called Biscuit."), ("b", "What's my puppy's name?")):
            response = client.post(
                f"/v1/sessions/{session}/turns", json={"message": text, "stream": False}
            )
            turn = response.json()
            wait_for(lambda: client.get("/health/ready").json()["projection"]["behind"] == 0)
        receipt = turn["receipt"]
        assert not receipt["estimated"]
        assert receipt["degraded"] == []
        items = receipt["layers"]["recall"]["items"]
        assert any(item["session_id"] == "a" and item["dense_rank"] == 1 for item in items)
        assert client.get("/schema").status_code == 200
    out = folder / "out"
    subprocess.run(
        [sys.executable, "-m", "evals", "recall", "--budgets", "512", "--out", str(out)],
        check=True,
        env=environment(),
        timeout=120,
    )
    report = json.loads((out / "report.json").read_text())
    assert all(data["embedding"].startswith("ready") for data in report["datasets"])


def _embedded(client: httpx.Client) -> dict[str, dict[str, str]] | None:
    ready: dict[str, dict[str, str]] = client.get("/health/ready").json()
    return ready if ready["embedding"]["status"] == "ok" else None


if __name__ == "__main__":
    _session(Path(sys.argv[1]))
