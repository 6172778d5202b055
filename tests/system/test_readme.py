"""The README is true: its commands run, and its outputs are what they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from waiting import wait_for

from system.process import ROOT, Service, environment, serving
from system.streams import parse_all, text_of

README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"<!-- (\w+) -->\n```\w+\n(.*?)```\n(?:```\n(.*?)```)?", re.DOTALL)


def _blocks(kind: str) -> list[tuple[str, str]]:
    found = [(commands, output) for name, commands, output in BLOCK.findall(README) if name == kind]
    assert found, f"the README holds no block marked {kind}"
    return found


def _run(command: str, service: Service, **variables: str) -> str:
    here = command.replace("localhost:8000", service.url.removeprefix("http://"))
    done = subprocess.run(
        ["sh", "-c", f"{here} --silent --show-error --fail"],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(**variables),
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def _events(output: str) -> list[tuple[str, Any]]:
    """(name, shape of the data); what is said, with its date left open."""
    pairs = re.findall(r"^event: (\w+)\n(?:id: .*\n)?data: (.*)$", output, re.MULTILINE)
    return [(name, _shape(json.loads(data))) for name, data in pairs]


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shape(part) for part in value]
    if isinstance(value, str):
        return re.sub(r"\d+|January|February|March|April|May|June|July|August|September|October"
                      r"|November|December", "_", value)  # fmt: skip
    return type(value).__name__ if isinstance(value, float | int) else value


def test_the_curl_session_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """Also the issue's promise: `serve` without any configuration, a stream, recall from another
    session."""
    with serving(tmp_path) as service:
        _check_the_curl_session(service)


def test_the_same_session_on_server_stores_with_two_workers(
    tmp_path: Path, shared: dict[str, dict[str, Any]]
) -> None:
    """The only difference is `serve --config`."""
    file = tmp_path / "servers.toml"
    shared = {**shared, "server": {"workers": 2}, "embedding": {"provider": "fastembed"}}
    file.write_text(
        "".join(
            f"[{group}]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for group, keys in shared.items()
        )
    )
    with serving(tmp_path, arguments=("--config", str(file))) as service:
        _check_the_curl_session(service)


def _check_the_curl_session(service: Service) -> None:
    with service.sync_client() as client:
        wait_for(
            lambda: client.get("/health/ready").json()["embedding"]["status"] == "ok",
            what="embedding model loaded",
        )
    for commands, shown in _blocks("curl"):
        for command in commands.strip().splitlines():
            with service.sync_client() as client:
                wait_for(
                    lambda: client.get("/health/ready").json()["projection"]["behind"] == 0,
                    what="projections caught up",
                )
            printed = _run(command, service)
            if shown:
                assert _events(printed) == _events(shown)
            else:
                assert json.loads(printed)


def test_a_question_is_retried_and_its_stream_resumed_and_cancelled(tmp_path: Path) -> None:
    """R7, R8, R9 as a client would begin with them."""
    ((commands, _),) = _blocks("retry")
    asking, resuming, cancelling = re.split(r"^#.*\n", commands, flags=re.MULTILINE)[1:]
    with serving(tmp_path, embedding={"provider": "none"}) as service:
        printed = _run(asking.strip(), service)
        first, again = parse_all(printed), parse_all(_run(asking.strip(), service))
        assert text_of(again) == text_of(first)
        assert [again[n][:3] for n in (0, 1, -1)] == [first[n][:3] for n in (0, 1, -1)]
        turn = first[0].data["turn_id"]
        last = {"TURN_ID": turn, "LAST_EVENT_ID": first[3].id}
        rest = parse_all(_run(resuming.strip(), service, **last))
        assert text_of(first[:4]) + text_of(rest) == text_of(first)
        told = json.loads(_run(cancelling.strip(), service, TURN_ID=turn))
        assert told == {"turn_id": turn, "status": "done"}


def test_the_python_example_runs(tmp_path: Path) -> None:
    for code, _ in _blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_every_configuration_key_stands_in_the_readme() -> None:
    from pydantic import BaseModel

    from service.config.settings import Settings

    table = README.split("## Configuration")[1].split("## Measured")[0]
    for group, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key in model.model_fields:
            assert f"`{key}`" in table, f"{group}.{key} is not in the README's table"
