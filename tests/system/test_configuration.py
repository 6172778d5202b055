"""docs/promises.md, "Bad input", configuration: key and fix are named, the exit code is not 0."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner
from waiting import wait_for

from service.cli.main import app
from system.conftest import BY_WORDS
from system.process import Child, Model, environment, serving, strata, variables
from system.streams import answer

COMMANDS = (("serve", "--port", "0"), ("check",))


def refused(code: int | None, stderr: str, named: tuple[str, ...]) -> None:
    """One line that names all of these, and an exit code that is not 0."""
    assert code, stderr
    assert "Traceback" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("strata: ")]
    assert len(lines) == 1, stderr
    for name in named:
        assert name in lines[0], lines[0]


@pytest.fixture
def invoke(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command that is refused by its configuration alone, in this process: that is quicker."""
    monkeypatch.chdir(folder)

    def run(*command: str, **groups: Any) -> Result:
        return CliRunner().invoke(app, list(command), env=variables(groups))

    return run


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"budget": {"context_tokns": 1}}, ("budget.context_tokns", "context_tokens")),
        ({"bugdet": {"context_tokens": 1}}, ("BUGDET", "'budget'")),
        (
            {"budget": {"context_tokens": 1000, "window_tokens": 900, "recall_tokens": 200}},
            ("budget", "exceed", "1000", "lower them or raise budget.context_tokens"),
        ),
        ({"budget": {"window_tokens": -1}}, ("budget.window_tokens",)),
        ({"model": {"base_url": "localhost:1234/v1"}}, ("model.base_url", "http://")),
        ({"model": {"first_token_timeout": "soon"}}, ("model.first_token_timeout", "2s")),
        ({"ttl": {"memory": "1y"}}, ("ttl.memory", "30d")),
        ({"session": {"wait": "-1s"}}, ("session.wait",)),
        ({"limits": {"body": "lots"}}, ("limits.body", "64kB")),
        ({"server": {"host": "0.0.0.0"}}, ("server.host", "127.0.0.1")),
        ({"server": {"host": "192.168.0.1"}}, ("server.host", "loopback")),
        ({"server": {"port": 70000}}, ("server.port",)),
        ({"server": {"workers": 2}}, ("server.workers",)),
        ({"server": {"log_level": "loud"}}, ("server.log_level",)),
        ({"auth": {"mode": "none"}}, ("auth.mode",)),
        ({"embedding": {"provider": "magic"}}, ("embedding.provider",)),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_is_refused_with_its_key_and_the_fix(
    invoke: Callable[..., Result], groups: dict[str, Any], named: tuple[str, ...]
) -> None:
    for command in COMMANDS:
        result = invoke(*command, **groups)
        refused(result.exit_code, result.stderr, named)


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"store": {"url": "strata.db"}}, ("store.url", "sqlite:///")),
        ({"store": {"url": "mysql://host/db"}}, ("store.url", "mysql")),
        ({"index": {"url": "elastic://host"}}, ("index.url", "edge:///")),
        ({"model": {"system": "word " * 9000}}, ("model.system", "8000")),
        ({"budget": {"context_tokns": 1}}, ("budget.context_tokns", "context_tokens")),
    ],
    ids=["store", "store_scheme", "index", "system", "unknown"],
)
def test_what_only_the_start_can_tell_is_refused_in_the_same_way(
    folder: Path, groups: dict[str, Any], named: tuple[str, ...]
) -> None:
    for command in COMMANDS:
        done = strata(*command, folder=folder, within_seconds=30, **groups)
        refused(done.returncode, done.stderr, named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[budget]\ncontext_tokns = 1\n", ("budget.context_tokns", "context_tokens")),
        ("[bugdet]\ncontext_tokens = 1\n", ("bugdet", "'budget'")),
        ("[budget]\ncontext_tokens = 'many'\n", ("budget.context_tokens",)),
        ("budget = 5\n", ("budget",)),
        ("[budget\n", ("strata.toml", "TOML")),
        ("[model]\nname = 5\n", ("model.name",)),
    ],
    ids=range(6),
)
def test_a_wrong_file_is_refused_with_its_key_and_the_fix(
    folder: Path, invoke: Callable[..., Result], text: str, named: tuple[str, ...]
) -> None:
    (folder / "strata.toml").write_text(text)
    for command in COMMANDS:
        result = invoke(*command)
        refused(result.exit_code, result.stderr, named)


def test_a_file_that_cannot_be_read_is_refused(folder: Path, invoke: Callable[..., Result]) -> None:
    (folder / "latin.toml").write_bytes(b"# \xff\n")
    for name in ("nowhere.toml", "latin.toml"):
        result = invoke("check", "--config", name)
        refused(result.exit_code, result.stderr, (name,))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_another_address_without_auth_is_refused_on_the_command_line_too(
    invoke: Callable[..., Result], host: str
) -> None:
    """S5."""
    result = invoke("serve", "--host", host, "--port", "0")
    refused(result.exit_code, result.stderr, ("server", "loopback"))


def test_a_part_that_cannot_be_reached_fails_the_check_and_is_named(folder: Path) -> None:
    nowhere = "http://127.0.0.1:9/v1"
    done = strata("check", folder=folder, model={"base_url": nowhere}, embedding=BY_WORDS)
    assert done.returncode != 0
    assert "model.base_url" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_of_the_model_fails_the_check_and_is_named(folder: Path, model: Model) -> None:
    model.mode("401", route="models")
    done = strata(
        "check", folder=folder, embedding=BY_WORDS,
        model={"base_url": f"{model.url}/v1", "api_key": "sk-wrong"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "model.api_key" in done.stdout + done.stderr
    assert "sk-wrong" not in done.stdout + done.stderr


def test_a_sound_configuration_passes_the_check(folder: Path) -> None:
    done = strata("check", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("store", "index", "embedding", "model", "projection"):
        assert re.search(rf"^{part}\s+status=ok", done.stdout, re.MULTILINE), done.stdout


def test_the_effective_configuration_is_toml_that_can_be_used_again(folder: Path) -> None:
    (folder / "strata.toml").write_text('[budget]\nwindow_tokens = 3000\n[ttl]\nmemory = "30d"\n')
    first = strata("config", folder=folder, recall={"deadline": "1s"})
    assert first.returncode == 0
    shown = tomllib.loads(first.stdout)
    assert shown["budget"]["window_tokens"] == 3000
    assert shown["recall"]["deadline"] == 1
    assert shown["server"]["port"] == 8000
    (folder / "strata.toml").write_text(first.stdout)
    assert strata("config", folder=folder).stdout == first.stdout


def test_variables_win_over_the_file_and_the_command_line_over_both(
    folder: Path, model: Model
) -> None:
    (folder / "strata.toml").write_text("[server]\nport = 1\ngrace = '3s'\n[session]\nwait = 7\n")
    with serving(
        folder, fake=model, embedding=BY_WORDS, server={"port": 2}, session={"wait": "8s"},
        env={"STRATA_UNRELATED": "no configuration", "STRATA_": "nor this"},
    ) as service:  # fmt: skip
        assert service.url.rsplit(":", 1)[1] not in ("1", "2")
        told = json.loads((folder / ".strata" / "serve.json").read_text())
        assert told["pid"] == service.pid
    shown = tomllib.loads(strata("config", folder=folder, session={"wait": "8s"}).stdout)
    assert shown["session"]["wait"] == 8
    assert shown["server"]["grace"] == 3


async def test_a_configuration_file_is_found_by_its_variable(folder: Path, model: Model) -> None:
    """STRATA_CONFIG; and absolute URLs with four slashes."""
    other = folder / "elsewhere"
    other.mkdir()
    data = folder / "data"
    (other / "my.toml").write_text(
        f'[store]\nurl = "sqlite:///{data}/memory.db"\n[index]\nurl = "edge:///{data}/vectors"\n'
        f'[embedding]\nprovider = "none"\n[model]\nbase_url = "{model.url}/v1"\n'
    )
    env = environment(STRATA_CONFIG=str(other / "my.toml"))
    child = Child([sys.executable, "-m", "service", "serve", "--port", "0"], folder=folder,
                  env=env, log=folder / "log.txt")  # fmt: skip
    try:
        wait_for((data / "serve.json").exists)
        port = json.loads((data / "serve.json").read_text())["port"]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await answer(client, "s", "hello")
        assert (data / "memory.db").exists()
        assert (data / "vectors").is_dir()
        assert not (folder / ".strata").exists()
    finally:
        child.kill()
