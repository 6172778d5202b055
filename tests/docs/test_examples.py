"""Every example runs, as its own first lines say that it is started."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from system.process import ROOT, Child, Service, environment
from waiting import wait_for

from docs.browser import CHROMIUM, Browser

EXAMPLES = ROOT / "examples"


def _run(name: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text("utf-8")
    for path in EXAMPLES.rglob("*.*"):
        assert "__pycache__" in path.parts or f'"{path.name}"' in here, path


def _run_until(name: str, pattern: str, folder: Path) -> str:
    """What it printed when `pattern` was in it: recall has 150 ms, and a busy machine misses it."""

    def run() -> str | None:
        printed = _run(name, folder=folder)
        return printed if re.search(pattern, printed) else None

    printed: str = wait_for(run, what=pattern)
    return printed


def test_a_turn_with_the_library(tmp_path: Path) -> None:
    printed = _run_until("library_turn.py", "2 recalled", tmp_path)
    assert [int(n) for n in re.findall(r"(\d+) recalled", printed)] == [0, 2]


def test_a_langchain_retriever(tmp_path: Path) -> None:
    assert "My bicycle is green." in _run("langchain_retriever.py", folder=tmp_path)


def test_an_import_is_recalled_and_can_be_repeated(tmp_path: Path) -> None:
    printed = _run_until("import_history.py", r"I am allergic to peanuts\.", tmp_path)
    assert printed.startswith("c1: 2 new, 0 known\nc2: 1 new, 0 known\nc1: 0 new, 2 known\n")


def test_own_data_is_evaluated(tmp_path: Path) -> None:
    printed = _run("evaluate_own_data.py", folder=tmp_path)
    assert re.search(r"\| single +\| +3 \| 100\.0 \| 100\.0 \|", printed)


def test_a_client_streams_and_recalls(offline: Service, tmp_path: Path) -> None:
    def ask(message: str, session: str) -> str:
        given = ("--session", session, "--url", offline.url)
        return _run("http_client.py", message, *given, folder=tmp_path)

    first = ask("My dog is called Biscuit.", "a")
    assert re.match(r"\[\d+ tokens sent, 0 messages recalled\]\n\(offline", first)
    with offline.sync_client() as client:
        wait_for(lambda: client.get("/health/ready").json()["projection"]["behind"] == 0)
    assert "Biscuit" in ask("What is my dog called?", "b")


def test_the_client_resumes_a_stream_that_broke_and_retries_what_never_arrived(
    offline: Service, tmp_path: Path
) -> None:
    """Through a proxy of its own that cuts the first answer off and refuses once."""
    script = f"""
import sys; sys.path.insert(0, {str(EXAMPLES)!r})
import httpx, http_client

class Cutting(httpx.HTTPTransport):
    calls = []
    def handle_request(self, request):
        self.calls.append((request.method, request.headers.get("idempotency-key")))
        if len(self.calls) == 1:
            raise httpx.ConnectError("refused")
        response = super().handle_request(request)
        if len(self.calls) > 2:
            return response
        def cut():
            left = 700
            for part in response.stream:
                yield part[:left]
                left -= len(part)
                if left <= 0:
                    raise httpx.ReadError("cut")
        return httpx.Response(200, headers=response.headers, content=cut())

client = httpx.Client(base_url={offline.url!r}, transport=Cutting(), timeout=30)
names, text = [], ""
for name, data in http_client.ask(client, "cut", "Tell me about dogs, please."):
    names.append(name)
    text += data.get("text", "") if name == "token" else ""
assert [m for m, _ in Cutting.calls] == ["POST", "POST", "GET"], Cutting.calls
assert Cutting.calls[0][1] == Cutting.calls[1][1]
assert (names[0], names[1], names[-1]) == ("accepted", "context", "done"), names
stored = client.get("/v1/sessions/cut/messages").json()["messages"]
assert [m["role"] for m in stored] == ["user", "assistant"], stored
assert stored[1]["content"] == text, (stored, text)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def _listening(arguments: list[str], folder: Path, **more: str) -> Iterator[str]:
    """The address of a server that prints it as uvicorn does."""
    log = folder / "example.log"
    env = environment(**more)
    child = Child([sys.executable, *arguments, "--port", "0"], folder=folder, env=env, log=log)
    try:
        found = wait_for(
            lambda: log.exists() and re.search(r"running on (http://\S+)", log.read_text()),
            what="example serving",
        )
        yield found[1]
    finally:
        child.kill()


def test_a_litestar_application_with_a_memory_of_its_own(tmp_path: Path) -> None:
    assert (EXAMPLES / "litestar_app.py").is_file()
    arguments = ["-m", "uvicorn", "examples.litestar_app:app"]
    with (
        _listening(arguments, tmp_path, EXAMPLE_DATA="data") as url,
        httpx.Client(base_url=url, headers={"x-user": "anna"}, trust_env=False) as client,
    ):
        for question in ("My dog is called Biscuit.", "What is my dog called?"):
            answer = client.post("/chat/s1", content=question, timeout=30)
            assert answer.status_code == 200
            assert answer.text
    assert (tmp_path / "data" / "strata.db").is_file()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    given = [str(EXAMPLES / "page" / "serve.py")]
    with _listening(given, folder, STRATA_RECALL__DEADLINE="10s") as url:
        yield url


def test_the_page_is_served_beside_the_service(page: str) -> None:
    """Parsed only; that it works is the next test's."""
    with httpx.Client(base_url=page, trust_env=False) as client:
        html = client.get("/")
        assert html.text == (EXAMPLES / "page" / "index.html").read_text("utf-8")
        HTMLParser().feed(html.text)
        assert client.get("/chat.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/health/live").json() == {"status": "up"}
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html.text)


_IN_NODE = """
import { ask } from %s;
let text = "", names = [];
for await (const { name, data } of ask(%s, "node", "My dog is called Biscuit.")) {
  names.push(name);
  if (name === "token") text += data.text;
}
console.log(JSON.stringify([names[0], names[1], names.at(-1), text]));
"""


def test_the_pages_script_streams_a_turn(page: str) -> None:
    """In headless Chromium: typed, sent, streamed, recalled. Where there is none, Node runs
    chat.js alone against the service: then the page's own elements are NOT TESTED. Where there
    is neither, the test is skipped and says so."""
    if CHROMIUM is not None:
        with Browser() as browser:
            _chat(browser, page)
        return
    node = shutil.which("node")
    if node is None:
        pytest.skip("neither chromium nor node: the page's script is NOT TESTED")
    script = _IN_NODE % (json.dumps(str(EXAMPLES / "page" / "chat.js")), json.dumps(page))
    done = subprocess.run(
        [node, "--input-type=module", "-"], input=script, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, last, text = json.loads(done.stdout)
    assert (first, second, last) == ("accepted", "context", "done")
    assert text.startswith("(offline model)")


def _chat(browser: Browser, page: str) -> None:
    """Two sessions: the second recalls what was said in the first."""
    with httpx.Client(base_url=page, trust_env=False) as client:

        def caught_up() -> bool:
            ready = client.get("/health/ready").json()
            return ready["embedding"]["status"] == "ok" and ready["projection"]["behind"] == 0

        for message in ("My dog is called Biscuit.", "What is my dog called?"):
            wait_for(caught_up, what="projections caught up")
            browser.open(f"{page}/")
            browser.evaluate(
                f"document.querySelector('input').value = {json.dumps(message)};"
                "document.querySelector('button').click()"
            )
            wait_for(
                lambda: browser.evaluate("document.querySelectorAll('[data-ended]').length") == 1,
                what="answer in the page",
            )
            shown = browser.evaluate("document.querySelector('main').innerText")
            assert message in shown
            assert re.search(r"\d+ tokens sent, \d+ messages recalled", shown)
            browser.evaluate("sessionStorage.clear()")
    assert re.search(r"\(offline model\) .*Biscuit", shown)
