"""Dockerfile and docker-compose.yml: nothing opens by default, everything is pinned and watched.

No engine is needed: the compose file is read as YAML and by whichever compose tool is there, and
the commands of the health checks are run against a real service.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import memory
from service.cli.main import app
from service.config.loading import load_settings
from system.conftest import BY_WORDS
from system.process import ROOT, Service, environment, serving

FILE = ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
REQUIRED = ("MONGO_PASSWORD", "QDRANT_API_KEY", "STRATA_AUTH__KEYS")
SECRET = re.compile(r"PASSWORD|KEY|SECRET|TOKEN")
Compose = Callable[..., "subprocess.CompletedProcess[str]"]


def _compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    return None


@pytest.fixture
def compose(folder: Path) -> Compose:
    """`docker compose config` with these lines as .env."""
    command = _compose_command()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is installed")

    def run(*lines: str) -> subprocess.CompletedProcess[str]:
        env_file = folder / "compose.env"
        env_file.write_text("\n".join(lines) + "\n")
        return subprocess.run(
            [*command, "-f", str(FILE), "--env-file", str(env_file), "config"],
            cwd=folder, env=environment(), capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def filled() -> list[str]:
    """A .env as .env.example tells to fill it: with what `strata token --key` prints."""
    made: Result = CliRunner().invoke(app, ["token", "--key", "--user", "anna"])
    (line,) = re.findall(r"^# (STRATA_AUTH__KEYS=.*)$", made.stdout, re.MULTILINE)
    return [f"MONGO_PASSWORD={'5e' * 24}", f"QDRANT_API_KEY={'7a' * 24}", line]


def test_a_filled_env_is_accepted_and_configures_the_service(
    compose: Compose, filled: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = compose(*filled, "STRATA_MODEL__NAME=some-model")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"strata", "mongo", "qdrant"}
    monkeypatch.chdir(folder)
    for name, value in services["strata"]["environment"].items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert settings.store.url.startswith(f"mongodb://strata:{'5e' * 24}@mongo:27017/strata")
    assert settings.index.url == "http://qdrant:6333"
    assert settings.index.api_key is not None
    assert settings.index.api_key.get_secret_value() == "7a" * 24
    assert settings.auth.keys[0].user == "anna"
    assert settings.server.host == "0.0.0.0"
    assert settings.server.workers == 2
    assert settings.model.name == "some-model"
    assert settings.model.base_url is None
    assert services["mongo"]["environment"]["MONGO_INITDB_ROOT_PASSWORD"] == "5e" * 24


@pytest.mark.parametrize("missing", REQUIRED)
@pytest.mark.parametrize("how", ["left out", "empty"])
def test_without_a_secret_it_is_refused(
    compose: Compose, filled: list[str], missing: str, how: str
) -> None:
    lines = [line for line in filled if not line.startswith(missing)]
    done = compose(*lines, *([f"{missing}="] if how == "empty" else []))
    assert done.returncode != 0
    assert ".env" in done.stderr


def test_the_example_lists_every_variable_and_gives_no_secret() -> None:
    named = set(re.findall(r"\$\{(\w+)", FILE.read_text()))
    passed_on = {name for name, value in SERVICES["strata"]["environment"].items() if not value}
    for name in named | passed_on:
        assert re.search(rf"^(# )?{name}=", EXAMPLE, re.MULTILINE), name
    set_there = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert set_there == dict.fromkeys(REQUIRED, "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_secret_of_its_own(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable) and value is not None:
            assert re.match(r"\$\{\w+:\?", value), variable
        if credentials := re.search(r"://([^@]*)@", str(value)):
            assert re.match(r"\w+:\$\{\w+:\?[^}]*\}$", credentials[1]), variable
    assert "env_file" not in SERVICES[name]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["cpus"] > 0
    assert service["pids_limit"] > 0
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_images_tag_is_the_packages_version() -> None:
    (tag,) = {SERVICES["strata"]["image"], *re.findall(r"strata-chat-memory:[\d.]+\d", EXAMPLE)}
    assert tag == f"strata-chat-memory:{memory.__version__}"


def test_only_the_service_has_a_port_and_that_on_loopback() -> None:
    whole = yaml.safe_load(FILE.read_text())
    assert SERVICES["strata"]["ports"] == ["${STRATA_ADDRESS:-127.0.0.1}:${STRATA_PORT:-8000}:8000"]
    for name in ("mongo", "qdrant"):
        assert "ports" not in SERVICES[name]
        assert SERVICES[name]["networks"] == ["inside"]
        volumes = {volume.split(":")[0] for volume in SERVICES[name]["volumes"]}
        assert volumes <= set(whole["volumes"])
        assert SERVICES["strata"]["depends_on"][name] == {"condition": "service_healthy"}
    assert whole["networks"]["inside"] == {"internal": True}


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"python:3.12-slim-bookworm"}
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert "--constraint constraints.txt" in DOCKERFILE
    assert DOCKERFILE.rstrip().endswith('CMD ["strata", "serve"]')


def test_what_the_image_is_built_from_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    assert "!.env" not in ignored


@pytest.fixture(scope="module")
def serving_now(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("image")
    with serving(folder, embedding=BY_WORDS, index={"url": "none"}) as service:
        yield service


def _exit_code(command: list[str], *, port: str, instead_of: str) -> int:
    """Of a health check's command, with this Python for the image's."""
    given = [part.replace(instead_of, port) for part in command]
    given[0] = {"python": sys.executable}.get(given[0], given[0])
    # A proxy for everything, as some engines hand to their containers.
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(given, env=env, capture_output=True, timeout=20, check=False)
    return done.returncode


def test_the_images_health_check_tells_life(serving_now: Service) -> None:
    found = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    for command in (json.loads(found[1]), SERVICES["strata"]["healthcheck"]["test"][1:]):
        port = serving_now.url.rsplit(":", 1)[1]
        assert _exit_code(command, port=port, instead_of="8000") == 0
        assert _exit_code(command, port="9", instead_of="8000") != 0
        wrong = [part.replace("/health/", "/nothing/") for part in command]
        assert _exit_code(wrong, port=port, instead_of="8000") != 0


def test_the_health_check_without_curl_reads_the_status(serving_now: Service) -> None:
    command = [part.replace("$$", "$") for part in SERVICES["qdrant"]["healthcheck"]["test"][1:]]
    port = serving_now.url.rsplit(":", 1)[1]
    alive = [part.replace("/readyz", "/health/live") for part in command]
    assert _exit_code(alive, port=port, instead_of="6333") == 0
    assert _exit_code(command, port=port, instead_of="6333") != 0, "404 is not healthy"
    assert _exit_code(alive, port="9", instead_of="6333") != 0
