"""The service processes under torture, and the stores they stand on."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from servers.mongo import Mongo
from system.conftest import BY_WORDS
from system.process import Child, Model, Qdrant, environment, serving

ROOT = Path(__file__).resolve().parents[2]
# A dead worker's sessions are free after it and the two seconds that clocks may differ.
LEASE = "1s"
SETTINGS: dict[str, dict[str, Any]] = {
    "store": {"timeout": "5s"},
    "embedding": dict(BY_WORDS),
    "projector": {"interval": "200ms"},
    "session": {"lease": LEASE, "partial_flush": "50ms", "wait": "120s"},
    "model": {"summary_name": "summary"},
}
_collections = count(1)


class Worker(Protocol):
    url: str
    child: Child

    def start(self) -> None: ...
    def kill(self) -> None: ...


class Cluster:
    """`store` is its name in the table."""

    def __init__(self, store: str, workers: list[Any], rng: random.Random) -> None:
        self.store = store
        self.workers: list[Worker] = workers
        self._rng = rng
        self._up = set(range(len(workers)))

    def address(self) -> str:
        """One that runs, as a balancer would choose it."""
        choice = sorted(self._up) or range(len(self.workers))
        return self.workers[self._rng.choice(choice)].url

    def other(self, url: str) -> str:
        """Another one where there is another."""
        others = [worker.url for worker in self.workers if worker.url != url]
        return self._rng.choice(others or [url])

    async def kill(self, victim: int) -> None:
        self._up.discard(victim)
        await asyncio.to_thread(self.workers[victim].kill)

    async def start(self, victim: int) -> None:
        await asyncio.to_thread(self.workers[victim].start)
        self._up.add(victim)

    def stop(self, victim: int) -> None:
        """It stands still, and its connections stay open."""
        self._up.discard(victim)
        self.workers[victim].child.signal(signal.SIGSTOP)

    def go_on(self, victim: int) -> None:
        self.workers[victim].child.signal(signal.SIGCONT)
        self._up.add(victim)


def merged(*settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for given in settings:
        for group, keys in given.items():
            groups[group] = {**groups.get(group, {}), **keys}
    return groups


@contextmanager
def on_sqlite(
    folder: Path, model: Model, rng: random.Random, **more: Mapping[str, Any]
) -> Iterator[Cluster]:
    with serving(folder / "sqlite", fake=model, **merged(SETTINGS, more)) as service:
        yield Cluster("SQLite, 1 process", [service], rng)


@contextmanager
def on_mongo(
    folder: Path, model: Model, rng: random.Random, *, mongo: Mongo, qdrant: Qdrant,
    processes: int, **more: Mapping[str, Any],
) -> Iterator[Cluster]:  # fmt: skip
    url = mongo.database()
    index = {"url": qdrant.url, "collection": f"torture{next(_collections)}"}
    shared = merged(SETTINGS, {"store": {"url": url}, "index": index}, more)
    with ExitStack() as stack:
        services = [
            stack.enter_context(serving(folder / f"mongo{n}", fake=model, **shared))
            for n in range(processes)
        ]
        plural = "es" if processes > 1 else ""
        yield Cluster(f"{mongo.name}, {processes} process{plural}", services, rng)
    mongo.drop(url)


class Tutorial:
    """The control: the history of the usual tutorials (tests/torture/tutorial.py)."""

    def __init__(self, folder: Path, model: Model, *, file: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        arguments = [sys.executable, "-m", "torture.tutorial", "--model", model.url]
        self._arguments = [*arguments, *(["--file", str(folder / "history.json")] if file else [])]
        self.start()

    def start(self) -> None:
        self.child = Child(
            self._arguments,
            folder=self._folder,
            env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            log=self._folder / "tutorial.log",
        )
        assert self.child.process.stdout is not None
        told = self.child.process.stdout.readline()
        assert told, self.child.log.read_text()
        self.url = f"http://127.0.0.1:{int(told)}"

    def kill(self) -> None:
        self.child.kill()


@contextmanager
def on_tutorial(folder: Path, model: Model, rng: random.Random, *, file: bool) -> Iterator[Cluster]:
    tutorial = Tutorial(folder / "tutorial", model, file=file)
    try:
        yield Cluster(f"control: {'a JSON file' if file else 'a list'}", [tutorial], rng)
    finally:
        tutorial.kill()
