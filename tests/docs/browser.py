"""A headless Chromium, driven over its DevTools protocol; only where one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from waiting import wait_for
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing but the page is to be asked, and no profile kept.
_OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=900,700",
]  # fmt: skip


class Browser:
    def __enter__(self) -> Self:
        assert CHROMIUM is not None
        self._left = ExitStack()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port_file = Path(self._folder.name) / "DevToolsActivePort"
        wait_for(
            lambda: port_file.exists() and port_file.read_text().strip(),
            what="chromium up",
        )
        port = port_file.read_text().split()[0]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            pages = wait_for(
                lambda: [t for t in client.get("/json").json() if t["type"] == "page"],
                what="a page of chromium",
            )
        url = pages[0]["webSocketDebuggerUrl"]
        self._socket = self._left.enter_context(connect(url, max_size=None, proxy=None))
        self._sent = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.close()
        self._process.kill()
        self._process.wait(10)
        self._folder.cleanup()

    def _call(self, method: str, **given: Any) -> Any:
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": given}))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        wait_for(
            lambda: self.evaluate("location.href + document.readyState") == f"{url}complete",
            what="page loaded",
        )

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")
