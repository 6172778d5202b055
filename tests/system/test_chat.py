"""`strata chat`: in a pipe and on a terminal, over HTTP and over the stores themselves."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from servers.proxy import Proxy
from waiting import PATIENCE_SECONDS, wait_for

from system.conftest import BY_WORDS
from system.process import ROOT, Model, environment, serving, strata, strata_many, variables

BENCHMARKS = Path(os.environ.get("STRATA_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
LOCOMO = BENCHMARKS / "dev" / "locomo.json"


def test_what_was_told_in_one_session_is_remembered_in_another(folder: Path) -> None:
    """Without any model or configuration: the offline model quotes what it remembers."""
    told = strata("chat", "one", folder=folder, text="My parrot is called Humboldt.\n")
    assert told.returncode == 0, told.stderr
    lines = "What is my parrot called?\n/context\n/nonsense\n\n/quit\nnever read\n"
    asked = strata("chat", "two", folder=folder, text=lines)
    assert asked.returncode == 0, asked.stderr
    assert "My parrot is called Humboldt." in asked.stdout
    assert re.search(r"\d+ of 8000 tokens", asked.stdout)
    for layer in ("system", "facts", "summary", "window", "recall", "question"):
        assert re.search(rf"{layer}\W+\d+", asked.stdout), asked.stdout
    assert re.search(r"one #1 +score", asked.stdout), "which message was recalled"
    assert "/quit ends" in asked.stdout
    assert "never read" not in asked.stdout


def test_context_before_the_first_answer_says_so(folder: Path) -> None:
    done = strata("chat", folder=folder, text="/context\n", embedding=BY_WORDS)
    assert done.returncode == 0
    assert "no answer yet" in done.stdout


async def test_it_talks_to_a_service_by_url_or_when_that_holds_the_folder(
    model: Model, folder: Path
) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        by_url = strata(
            "chat", "s", "--url", service.url, "--user", "anna",
            folder=elsewhere, text="hello there\n/context\n",
        )  # fmt: skip
        assert by_url.returncode == 0, by_url.stderr
        assert "You said: hello there" in by_url.stdout
        assert "of 8000 tokens" in by_url.stdout
        assert not (elsewhere / ".strata").exists()
        by_lock = strata("chat", "s", "--user", "anna", folder=folder, text="and again\n")
        assert "You said: and again" in by_lock.stdout
        async with service.client("anna") as client:
            found = (await client.get("/v1/sessions/s/messages")).json()["messages"]
        assert [m["content"] for m in found][::2] == ["hello there", "and again"]
        model.mode("500")
        failed = strata("chat", "s", "--url", service.url, folder=elsewhere, text="hello\n/quit\n")
        assert failed.returncode == 0
        assert "model_error" in failed.stdout


def test_a_connection_that_breaks_is_taken_up_where_it_was(
    model: Model, folder: Path, rng: random.Random
) -> None:
    """R7, R9: the line is said once, its answer shown once and whole."""
    text = " ".join(f"word{n}" for n in range(80))
    model.mode("slow", delay=0.01, text=text)
    with (
        serving(folder / "served", fake=model, embedding=BY_WORDS) as service,
        Proxy("127.0.0.1", int(service.url.rpartition(":")[2])) as proxy,
    ):
        proxy.mode("cut", after_bytes=rng.randrange(1500, 3500))
        done = strata(
            "chat", "s", "--url", f"http://127.0.0.1:{proxy.port}", folder=folder, text="tell me\n"
        )
        assert done.returncode == 0, done.stderr
        assert proxy.accepted > 2
        assert "".join(text.split()) in "".join(done.stdout.split())
        assert done.stdout.count("word0") == 1
        with service.sync_client() as client:
            found = client.get("/v1/sessions/s/messages").json()["messages"]
        assert [m["content"] for m in found] == ["tell me", text]
    assert len(model.requests()) == 1


def test_what_cannot_be_chatted_with_is_said_in_one_line(folder: Path) -> None:
    calls = (("chat", "a b"), ("chat", "--url", "http://127.0.0.1:9"))
    bad_id, nowhere = strata_many([(folder, call) for call in calls], text="hello\n")
    assert (bad_id["code"], nowhere["code"]) == (1, 1)
    assert bad_id["stderr"].startswith("strata: session_id: ")
    assert nowhere["stderr"].startswith("strata: http://127.0.0.1:9: ")
    assert bad_id["stderr"].count("\n") == nowhere["stderr"].count("\n") == 1


def test_on_a_terminal_the_answer_streams_and_end_of_input_ends_it(
    model: Model, folder: Path
) -> None:
    model.mode("slow", delay=0.5, text="first second third")
    mine, theirs = pty.openpty()
    settings = variables({"model": {"base_url": f"{model.url}/v1"}, "embedding": BY_WORDS})
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "chat", "s"],
        cwd=folder, env=environment(TERM="xterm", COLUMNS="100", **settings),
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def until_shown(text: str) -> None:
        def found() -> bool:
            nonlocal shown
            if select.select([mine], [], [], 0.1)[0]:
                shown += os.read(mine, 4096).decode("utf-8", "replace")
            return text in shown

        wait_for(found, what=text)

    try:
        until_shown("you>")
        os.write(mine, b"tell me\n")
        until_shown("first")
        assert "third" not in shown
        until_shown("third")
        os.write(mine, b"/context\n")
        until_shown("of 8000 tokens")
        os.write(mine, b"\x04")
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors
        assert errors == b""
    finally:
        process.kill()
        process.wait()
        os.close(mine)


@pytest.mark.skipif(not LOCOMO.exists(), reason=f"{LOCOMO} is not there (STRATA_BENCHMARKS)")
def test_a_real_conversation_can_be_imported_and_asked(folder: Path) -> None:
    """The first labelled conversation: import, then ask in the terminal."""
    first = json.loads(LOCOMO.read_text())[:1]
    (folder / "conversation.json").write_text(json.dumps(first))
    done = strata(
        "import", "conversation.json", "--format", "conversations", "--user", "reader",
        folder=folder, within_seconds=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    turns = sum(len(s["turns"]) for s in first[0]["sessions"])
    assert done.stdout.strip() == f"{turns} messages imported, 0 were there already"
    question = "When did Caroline go to the LGBTQ support group?"
    asked = strata("chat", "now", "--user", "reader", folder=folder,
                   text=f"{question}\n/context\n")  # fmt: skip
    assert "I went to a LGBTQ support group yesterday" in " ".join(asked.stdout.split())
    assert "8 May 2023" in asked.stdout
    again = strata("import", "conversation.json", "--format", "conversations", "--user", "reader",
                   folder=folder)  # fmt: skip
    assert again.stdout.strip() == f"0 messages imported, {turns} were there already"
