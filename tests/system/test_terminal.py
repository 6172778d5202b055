"""`strata chat` and `strata import` as a person uses them, over opened stores and over HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from system.process import ROOT, serving, strata

BENCHMARKS = Path(os.environ.get("STRATA_BENCHMARKS") or ROOT.parent / "shared" / "benchmarks")
LOCOMO = BENCHMARKS / "dev" / "locomo.json"


def test_the_terminal_chat_answers_from_memory_and_shows_the_receipt(tmp_path: Path) -> None:
    first = strata("chat", "one", folder=tmp_path, text="My dog is called Biscuit.\n/quit\n")
    assert first.returncode == 0, first.stderr
    second = strata(
        "chat", "two", folder=tmp_path, text="/context\nWhat is my dog called?\n/context\n"
    )
    assert second.returncode == 0, second.stderr
    assert "no answer yet" in second.stdout
    assert "Biscuit" in second.stdout
    assert "of 8000 tokens" in second.stdout
    assert "one #1" in second.stdout, "the receipt names what was recalled"


def test_the_terminal_chat_talks_to_the_service_that_holds_the_folder(tmp_path: Path) -> None:
    with serving(tmp_path, embedding={"provider": "none"}) as service:
        for more in ((), ("--url", service.url)):
            said = strata("chat", "s", *more, folder=tmp_path, text="Hello there.\n/context\n")
            assert said.returncode == 0, said.stderr
            assert "offline model" in said.stdout
            assert "window" in said.stdout
        with service.sync_client() as client:
            history = client.get("/v1/sessions/s/messages").json()["messages"]
    assert len(history) == 4


def test_a_session_id_that_cannot_be_is_said(tmp_path: Path) -> None:
    said = strata("chat", "a b", folder=tmp_path)
    assert said.returncode == 1
    assert "session_id" in said.stderr


@pytest.mark.skipif(not LOCOMO.exists(), reason=f"{LOCOMO} is not there: real conversation")
def test_a_real_conversation_is_imported_and_answered_from(tmp_path: Path) -> None:
    conversation = json.loads(LOCOMO.read_text("utf-8"))[0]
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps([conversation]), "utf-8")
    command = ("import", str(file), "--format", "conversations", "--user", "caroline")
    for told in ("imported, 0 were there already", "0 messages imported"):
        done = strata(*command, folder=tmp_path, within_seconds=120)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
    asked = "When did Caroline go to the LGBTQ support group?\n/context\n"
    said = strata("chat", "new", "--user", "caroline", folder=tmp_path, text=asked)
    assert "LGBTQ support group yesterday" in " ".join(said.stdout.split())
    assert "meaning" in said.stdout
