"""`strata export`: everything of one user, in order, as lines that `strata import` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from system.conftest import BY_WORDS
from system.process import Model, serving, strata, strata_many
from system.streams import answer, ask, history

# Nothing has to be found: what is looked at is the log.
QUICK: dict[str, Any] = {"embedding": BY_WORDS, "index": {"url": "none"}}
ODD = "Zoë said: 你好, “quotes” \\ \t\n\u2028\u2029 𝒳 👩‍👩‍👧 \u200fשלום"


def line(session: str, n: int, **more: Any) -> dict[str, Any]:
    return {"session_id": session, "role": "user", "content": f"{session} {n}", **more}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def run(folder: Path, *arguments: str, **groups: Any) -> str:
    """A command that must succeed; its standard output."""
    done = strata(*arguments, folder=folder, **{**QUICK, **groups})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def exported(folder: Path, user: str, *arguments: str) -> list[dict[str, Any]]:
    return parsed(run(folder, "export", user, *arguments))


def parsed(text: str) -> list[dict[str, Any]]:
    """Only a newline ends a line: a text may well hold what Python takes for one."""
    return [json.loads(x) for x in text.split("\n") if x]


def said(messages: list[Any]) -> list[Any]:
    return [(m["role"], m["content"], m["created_at"], m["speaker"]) for m in messages]


async def test_what_is_exported_is_the_same_memory_elsewhere(folder: Path, model: Model) -> None:
    """Several sessions, speakers, times, other scripts, answers of the model; through a running
    service as from its files. Importing twice adds nothing, and exporting there gives the same."""
    here, there = folder / "here", folder / "there"
    here.mkdir()
    there.mkdir()
    lines = [
        line("old", 1, created_at="1999-01-01T00:00:00Z", speaker="Zoë", id="m/1"),
        line("old", 2, role="assistant", content=ODD, created_at="2024-05-08T12:00:00.123Z"),
        *[line("long", n, id=f"id-{n}") for n in range(250)],
        line("old", 3, speaker="Berta"),
    ]
    run(here, "import", str(write(folder / "lines.ndjson", lines)), "--user", "anna")
    run(here, "import", str(write(folder / "lines.ndjson", [line("old", 9)])), "--user", "berta")
    sessions = ("long", "old", "turns")
    with serving(here, fake=model, **QUICK) as service, service.sync_client("anna") as http:
        async with service.client("anna") as client:
            for question in ("What is this?", ODD):
                await answer(client, "turns", question)
            before = {s: await history(client, s) for s in sessions}
        over_http = run(here, "export", "anna")
        by_url = run(there, "export", "anna", "--url", service.url)
        assert http.get("/v1/me/export").status_code == 404
    assert not (there / ".strata").exists()
    from_files = run(here, "export", "anna")
    assert over_http == by_url == from_files

    found = parsed(over_http)
    assert [x["session_id"] for x in found] == ["long"] * 250 + ["old"] * 3 + ["turns"] * 4
    assert all(set(x) <= {"session_id", "role", "content", "created_at", "speaker", "id"}
               for x in found)  # fmt: skip
    assert found[250] == {
        "session_id": "old", "role": "user", "content": "old 1",
        "created_at": "1999-01-01T00:00:00Z", "speaker": "Zoë", "id": "m/1",
    }  # fmt: skip
    assert found[251]["content"] == ODD
    assert found[251]["id"] == before["old"][1]["id"], "its own, as the client gave none"
    assert [x["role"] for x in found[-4:]] == ["user", "assistant"] * 2

    path = folder / "anna.ndjson"
    path.write_text(over_http, newline="")
    arguments = ("import", str(path), "--user", "carla")
    assert run(there, *arguments).strip() == "257 messages imported, 0 were there already"
    assert run(there, *arguments).strip() == "0 messages imported, 257 were there already"
    with serving(there, fake=model, **QUICK) as service:
        async with service.client("carla") as client:
            for session in sessions:
                assert said(await history(client, session)) == said(before[session])
            listed = (await client.get("/v1/sessions")).json()["sessions"]
            assert [s["session_id"] for s in listed] == ["turns", "old", "long"]
    assert run(there, "export", "carla") == over_http


async def test_an_answer_is_written_as_far_as_it_came_and_none_that_did_not(
    folder: Path, model: Model
) -> None:
    with serving(folder, fake=model, **QUICK, model={"max_retries": 0}) as service:
        async with service.client("anna") as client:
            await answer(client, "s", "one")
            model.mode("500")
            await ask(client, "s", "two")
            model.mode("reset", chunks=3)
            await ask(client, "s", "three")
            model.mode()
            messages = await history(client, "s")
            assert [m["status"] for m in messages] == ["done", "done", "done", "failed", "done",
                                                       "partial"]  # fmt: skip
        done = strata("export", "anna", folder=folder, **QUICK)
    lines = parsed(done.stdout)
    kept = [m for m in messages if m["status"] != "failed"]
    assert [(x["role"], x["content"]) for x in lines] == [(m["role"], m["content"]) for m in kept]
    assert lines[-1]["content"]
    assert "5 messages of 1 sessions exported, 1 without text left out" in done.stderr


def test_many_sessions_come_with_the_longest_quiet_one_first(folder: Path) -> None:
    """More than a page of the list; those of one moment in any order."""
    lines = [line(f"s{n}", n) for n in range(450)]
    run(folder, "import", str(write(folder / "lines.ndjson", lines)), "--user", "anna")
    with serving(folder, **QUICK):
        found = [int(x["session_id"][1:]) for x in exported(folder, "anna")]
    assert sorted(found) == list(range(450))
    assert max(abs(n - place) for place, n in enumerate(found)) < 20


def test_a_file_is_written_whole_and_for_its_owner_only(folder: Path) -> None:
    run(folder, "import", str(write(folder / "lines.ndjson", [line("s", 1)])), "--user", "anna")
    out = folder / "anna.ndjson"
    out.write_text("what was there before")
    assert run(folder, "export", "anna", "--output", str(out)) == ""
    assert json.loads(out.read_text())["content"] == "s 1"
    assert out.stat().st_mode & 0o777 == 0o600
    failed = strata("export", "anna", "--output", str(out), "--url", "http://127.0.0.1:9",
                    folder=folder, **QUICK)  # fmt: skip
    assert failed.returncode == 1
    assert "127.0.0.1:9" in failed.stderr
    assert json.loads(out.read_text())["content"] == "s 1"
    assert not list(folder.glob("*.part"))
    assert run(folder, "export", "anna", "--output", "/dev/null") == ""
    assert Path("/dev/null").is_char_device()


def test_who_never_said_anything_has_an_empty_export(folder: Path) -> None:
    done = strata("export", "nobody", folder=folder, **QUICK)
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 messages of 0 sessions exported" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--output", "x")])
def test_whose_memory_must_be_said(folder: Path, arguments: tuple[str, ...]) -> None:
    done = strata("export", *arguments, folder=folder, **QUICK)
    assert done.returncode == 1
    assert "strata export USER" in done.stderr
    assert not (folder / "x").exists()


def test_an_export_takes_constant_memory(folder: Path) -> None:
    """1 MB, then 5 MB by the same process: its peak hardly grows."""
    calls = []
    for megabytes in (1, 5):
        lines = [line("s", n, content=f"{n} " + "word " * 400) for n in range(megabytes * 500)]
        path = write(folder / f"{megabytes}.ndjson", lines)
        calls.append((folder, ("import", str(path), "--user", f"user{megabytes}")))
    assert {said["code"] for said in strata_many(calls, **QUICK)} == {0}
    small, large = strata_many(
        [
            (folder, ("export", f"user{megabytes}", "--output", f"out{megabytes}.ndjson"))
            for megabytes in (1, 5)
        ],
        **QUICK,
    )
    for megabytes, said in ((1, small), (5, large)):
        assert f"{megabytes * 500} messages of 1 sessions exported" in said["stderr"]
        contents = [x["content"] for x in parsed((folder / f"out{megabytes}.ndjson").read_text())]
        assert [int(x.split()[0]) for x in contents] == list(range(megabytes * 500))
    assert large["peak"] - small["peak"] < 4, f"MB at the peak: {small['peak']}, {large['peak']}"
