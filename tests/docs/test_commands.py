"""The pages are true: their commands run, and their outputs are what they print.

A block is marked with how it is run (`curl`, `retry`, `python`, `cli`, `evals`, `toml`, `example`),
or with why it is not: `make`, `docker` and `shown` carry a reason, and then at least its syntax,
its targets and its options are checked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from system.process import ROOT, Service, environment, serving
from system.streams import parse_all, text_of
from waiting import wait_for

from docs.blocks import PAGES, Block, blocks
from service.config.loading import load_settings

RUN = {"curl", "retry", "python", "cli", "evals", "toml", "example"}
NOT_RUN = {"make", "docker", "shown"}
LANGUAGES = {"sh", "python", "toml", "js"}
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# Hashes of a user or a session, numbers, dates.
_VARYING = re.compile(rf"\b[0-9a-f]{{32}}\b|\d+|{_MONTHS}")
PATIENT = {"deadline": "10s"}
LINE = '{"session_id":"s1","role":"user","content":"My dog is called Biscuit.","id":"1"}\n'


def test_every_block_says_how_it_is_run_or_why_it_is_not() -> None:
    for block in blocks():
        if block.language not in LANGUAGES:
            assert block.kind is None, f"{block.page}: {block.text}"
            continue
        assert block.kind in RUN | NOT_RUN, f"{block.page}: a block without a mark:\n{block.text}"
        assert (block.reason is not None) == (block.kind in NOT_RUN), f"{block.page}: {block.text}"


def _run(command: str, service: Service, **variables: str) -> str:
    here = command.replace("localhost:8000", service.url.removeprefix("http://"))
    return _shell(f"{here} --silent --show-error --fail", environment(**variables))


def _shell(command: str, env: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=env,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _events(output: str) -> list[tuple[str, Any]]:
    """(name, shape of the data); what is said, with its date left open."""
    pairs = re.findall(r"^event: (\w+)\n(?:id: .*\n)?data: (.*)$", output, re.MULTILINE)
    return [(name, _shape(json.loads(data))) for name, data in pairs]


def _check_events(found: list[tuple[str, Any]], shown: str) -> None:
    """Where the page shows `…`, tokens are left out there."""
    before, ellipsis, after = shown.partition("…\n")
    head, tail = _events(before), _events(after)
    assert found[: len(head)] == head
    if not ellipsis:
        assert found == head
        return
    assert found[-len(tail) :] == tail
    assert {name for name, _ in found[len(head) : -len(tail)]} == {"token"}


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shape(part) for part in value]
    if isinstance(value, str):
        return _VARYING.sub("_", value)
    return type(value).__name__ if isinstance(value, float | int) else value


def test_the_curl_session_prints_what_the_page_shows(tmp_path: Path) -> None:
    """Also the first promise of all: `serve` without any configuration (but a recall that may take
    longer, on a busy machine), a stream, recall from another session."""
    with serving(tmp_path, recall=PATIENT) as service:
        _check_the_curl_sessions(service)


def test_the_same_session_on_server_stores_with_two_workers(
    tmp_path: Path, shared: dict[str, dict[str, Any]]
) -> None:
    """The only difference is `serve --config`."""
    file = tmp_path / "servers.toml"
    shared = {
        **shared,
        "recall": PATIENT,
        "server": {"workers": 2},
        "embedding": {"provider": "fastembed"},
    }
    file.write_text(
        "".join(
            f"[{group}]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for group, keys in shared.items()
        )
    )
    with serving(tmp_path, arguments=("--config", str(file))) as service:
        _check_the_curl_sessions(service)


def _check_the_curl_sessions(service: Service) -> None:
    with service.sync_client() as client:
        wait_for(
            lambda: client.get("/health/ready").json()["embedding"]["status"] == "ok",
            what="embedding model loaded",
        )
        for block in blocks("curl"):
            for command in block.commands():
                wait_for(
                    lambda: client.get("/health/ready").json()["projection"]["behind"] == 0,
                    what="projections caught up",
                )
                # Each page is a first session: its own user here.
                printed = _run(f"{command} -H 'x-user-id: {block.page}'", service)
                if block.output:
                    _check_events(_events(printed), block.output)
                elif printed.startswith("event:"):
                    assert _events(printed)[-1][0] == "done"
                else:
                    assert json.loads(printed)


def test_a_question_is_retried_and_its_stream_resumed_and_cancelled(tmp_path: Path) -> None:
    """R7, R8, R9 as a client would begin with them."""
    (block,) = blocks("retry")
    asking, resuming, cancelling = block.commands()
    with serving(tmp_path, embedding={"provider": "none"}) as service:
        printed = _run(asking, service)
        first, again = parse_all(printed), parse_all(_run(asking, service))
        assert text_of(again) == text_of(first)
        assert [again[n][:3] for n in (0, 1, -1)] == [first[n][:3] for n in (0, 1, -1)]
        turn = first[0].data["turn_id"]
        last = {"TURN_ID": turn, "LAST_EVENT_ID": first[3].id}
        rest = parse_all(_run(resuming, service, **last))
        assert text_of(first[:4]) + text_of(rest) == text_of(first)
        answer = json.loads(_run(cancelling, service, TURN_ID=turn))
        assert answer == {"turn_id": turn, "status": "done"}


def _id(block: Block) -> str:
    return f"{block.page}:{block.text.splitlines()[0][:40]}"


@pytest.mark.parametrize("block", blocks("python"), ids=_id)
def test_python_runs(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [*blocks("cli"), *blocks("evals")], ids=_id)
def test_commands_run_one_after_the_other(block: Block, tmp_path: Path) -> None:
    """In a folder with the files that they name."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("strata", "python"):
        program = tmp_path / ".venv" / "bin" / name
        module = " -m service" if name == "strata" else ""
        program.write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        program.chmod(0o755)
    (tmp_path / "history.ndjson").write_text(LINE)
    shutil.copy(ROOT / "evals" / "data" / "small_en.json", tmp_path / "chats.json")
    small = json.loads((ROOT / "evals" / "data" / "small_en.json").read_text())[:1]
    (tmp_path / "mine.json").write_text(json.dumps(small))
    for command in block.commands():
        _shell(command, environment(), tmp_path)


@pytest.mark.parametrize("block", blocks("toml"), ids=_id)
def test_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "strata.toml"
    file.write_text(block.text)
    assert load_settings(file)


def test_commands_of_examples_name_files_that_the_tests_run() -> None:
    for block in blocks("example"):
        for command in block.commands():
            program, file, *_ = shlex.split(command)
            assert program == ".venv/bin/python"
            assert (ROOT / file).is_file(), f"{block.page}: {command}"
            run = (ROOT / "tests" / "docs" / "test_examples.py").read_text()
            assert f'"{Path(file).name}"' in run, f"{file} is run by no test"


def test_make_targets_exist() -> None:
    for block in blocks("make"):
        for command in block.commands():
            assert command.startswith("make ")
            _shell(f"{command} --dry-run", environment(), ROOT)


@pytest.mark.parametrize("block", [*blocks("shown"), *blocks("docker")], ids=_id)
def test_what_is_only_shown_is_right_as_far_as_that_can_be_seen(block: Block) -> None:
    """Its syntax, the files it names, and the options of our own commands; not what it does."""
    subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
    for command in block.commands():
        words = shlex.split(re.sub(r"^docker run .*? strata ", "strata ", command))
        if words[0] == "cp":
            assert (ROOT / words[1]).is_file()
        elif words[0].endswith("strata"):
            _check_options(["-m", "service", words[1]], words[2:])
        elif words[1:3] == ["-m", "evals"]:
            _check_options(["-m", "evals", words[3]], words[4:])


def _check_options(command: list[str], given: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(COLUMNS="200", TERM="dumb"),
        check=True,
    )
    for option in given:
        if option.startswith("-"):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.stdout), f"{command} {option}"


_INLINE = re.compile(r"`((?:make|strata|python|\.venv/bin/\w+) [^`]+)`")


def test_commands_within_sentences_exist() -> None:
    """Their make targets, files, subcommands and options."""
    for page in PAGES:
        for command in _INLINE.findall(page.read_text("utf-8")):
            words = shlex.split(command)
            program = Path(words[0]).name
            if program == "make":
                _shell(f"{command.replace('SEED=N', '')} --dry-run", environment(), ROOT)
            elif program == "strata":
                _check_options(["-m", "service", words[1]], words[2:])
            elif words[1:3] == ["-m", "evals"]:
                _check_options(["-m", "evals", *words[3:4]], words[4:])
            elif program == "python" and words[1] != "-m":
                assert (ROOT / words[1]).is_file(), f"{page.name}: {command}"
