"""The MongoDB server of the tests: the first that can be had, started once per run.

1. STRATA_TEST_MONGO_URL, a server that runs already (STRATA_TEST_MONGO_RESTART may name a command
   that kills it hard and starts it again);
2. `mongod` on PATH, on a free port with a folder of its own;
3. mongo-java-server, an independent server in memory, by way of Maven and a JDK. It has no TTL
   deletion, no explain and keeps nothing: what needs these is skipped with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import uuid4

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from system.process import Child, environment
from waiting import wait_for

JAVA = Path(__file__).parent / "mongo_java"
MAVEN_SECONDS = 300
HARD = "kill -9"
FULL_ONLY = ("TTL deletion", "query plans (explain)")


@dataclass(frozen=True)
class Mongo:
    """A server that answers. `full`: it has all that MongoDB has, as far as we use it."""

    name: str
    url: str
    full: bool
    kill_and_restart: Callable[[], None] | None = None
    version: str = ""
    client: MongoClient[dict[str, Any]] = field(repr=False, kw_only=True)

    @property
    def not_shown(self) -> tuple[str, ...]:
        """The promises that no test can show on it."""
        missing = () if self.full else FULL_ONLY
        return missing if self.kill_and_restart else (*missing, f"surviving {HARD}")

    def database(
        self, name: str | None = None, *, port: int | None = None, ends_tls: bool = False
    ) -> str:
        """The URL of one of its databases (else of a new one), by way of a proxy on `port`."""
        parts = urlsplit(self.url)
        options = dict(parse_qsl(parts.query))
        place = parts.netloc
        if ends_tls:
            options = {key: value for key, value in options.items() if not key.startswith("tls")}
        if parts.username:  # else it would be looked for in the database itself
            options.setdefault("authSource", "admin")
        if port is not None:
            login, at, _ = place.rpartition("@")
            options["directConnection"] = "true"  # a replica set would tell of its own addresses
            place = f"{login}{at}127.0.0.1:{port}"
        path = f"/{name or f'strata_test_{uuid4().hex[:12]}'}"
        return urlunsplit(parts._replace(netloc=place, path=path, query=urlencode(options)))

    @property
    def tls(self) -> bool:
        return dict(parse_qsl(urlsplit(self.url).query)).get("tls") == "true"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 27017

    def drop(self, url: str) -> None:
        self.client.drop_database(urlsplit(url).path[1:])


@contextmanager
def mongo_server(folder: Path) -> Iterator[Mongo | str]:
    """The server, or why there is none."""
    if url := os.environ.get("STRATA_TEST_MONGO_URL"):
        command = os.environ.get("STRATA_TEST_MONGO_RESTART")
        restart = (lambda: _run_command(command)) if command else None
        with _answering("the server of STRATA_TEST_MONGO_URL", url, True, restart) as server:
            yield server
    elif binary := shutil.which("mongod"):
        with _mongod(binary, folder) as server:
            yield server
    elif shutil.which("mvn") and shutil.which("javac"):
        class_path = _class_path()
        if class_path is None:
            yield "Maven could not get mongo-java-server"
        else:
            with _java(class_path, folder) as server:
                yield server
    else:
        yield "no STRATA_TEST_MONGO_URL, no mongod, and no mvn with a JDK"


@contextmanager
def _answering(
    name: str, url: str, full: bool, restart: Callable[[], None] | None = None
) -> Iterator[Mongo]:
    client: MongoClient[dict[str, Any]] = MongoClient(url, serverSelectionTimeoutMS=2000)
    try:
        info = wait_for(lambda: _info(client), what=f"{name} answers")
        yield Mongo(name, url, full, restart, info["version"], client=client)
    finally:
        client.close()


def _info(client: MongoClient[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return client.server_info()
    except PyMongoError:
        return None


def _run_command(command: str) -> None:
    subprocess.run(command, shell=True, check=True, timeout=120, capture_output=True)


@contextmanager
def _mongod(binary: str, folder: Path) -> Iterator[Mongo]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "data").mkdir()
    arguments = [
        binary, "--dbpath", str(folder / "data"), "--port", str(port), "--bind_ip", "127.0.0.1",
        "--nounixsocket", "--logpath", str(folder / "log"), "--logappend",
        "--setParameter", "ttlMonitorSleepSecs=1",
    ]  # fmt: skip

    def start() -> Child:
        return Child(arguments, folder=folder, env=environment(), log=folder / "errors")

    running = [start()]

    def restart() -> None:
        running.pop().kill()
        running.append(start())

    try:
        with _answering("mongod", f"mongodb://127.0.0.1:{port}", True, restart) as server:
            yield server
    finally:
        running.pop().kill()


@contextmanager
def _java(class_path: str, folder: Path) -> Iterator[Mongo]:
    server = Child(
        ["java", "-Xmx512m", "-cp", class_path, str(JAVA / "Serve.java"), "0"],
        folder=folder, env=environment(), log=folder / "log",
    )  # fmt: skip
    try:
        assert server.process.stdout is not None
        port = server.process.stdout.readline().decode().strip()
        assert port, f"mongo-java-server did not start: {server.log.read_text()}"
        url = f"mongodb://127.0.0.1:{port}"
        with _answering("mongo-java-server", url, False) as found:
            yield found
    finally:
        server.kill()


def _class_path() -> str | None:
    """Kept outside the project, and asked of Maven again when the pom has changed."""
    pom = JAVA / "pom.xml"
    name = f"strata-tests-{os.getuid()}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:16]}"
    kept = Path(tempfile.gettempdir()) / name
    for offline in (["-o"], []):
        if kept.exists() and all(Path(jar).exists() for jar in kept.read_text().split(os.pathsep)):
            return kept.read_text()
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "classpath"
            plugin = "dependency:build-classpath"
            subprocess.run(
                ["mvn", "-q", "-B", *offline, "-f", str(pom), plugin, f"-Dmdep.outputFile={made}"],
                capture_output=True, timeout=MAVEN_SECONDS, check=False,
            )  # fmt: skip
            if made.exists():
                shutil.copy(made, f"{kept}.{os.getpid()}")
                Path(f"{kept}.{os.getpid()}").rename(kept)
    return kept.read_text() if kept.exists() else None
