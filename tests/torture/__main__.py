"""The long rounds: `make torture`, or `PYTHONPATH=tests python -m torture [--seed N] [NAME…]`.

Prints a Markdown table; ends with 1 when anything acknowledged was lost, doubled, out of order or
mixed up. The first line tells the seed, `--seed` (or STRATA_SEED) repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from servers.mongo import Mongo, mongo_server
from servers.proxy import Proxy
from system.process import ROOT, Model, Qdrant, environment, modelling

from torture.away import index_away
from torture.cluster import Cluster, on_mongo, on_sqlite
from torture.cuts import cut
from torture.report import table, totals
from torture.scenarios import Row, at_once, awakened, killed, store_killed, together

PROCESSES = 4
AT_ONCE_ROUNDS = 5
FEW = {"users": 3, "sessions": 2, "tabs": 2}
SHARED = ("two-kills", "zombies", "cuts", "index-away", "at-once", "four-kills", "store-kills")
Scenario = Coroutine[Any, Any, Row]
MACHINE_TEST = ROOT / "tests" / "system" / "test_machine.py"


class Torture:
    """The scenarios that were chosen (none: all), on one set of servers."""

    def __init__(self, folder: Path, chosen: Sequence[str], rng: random.Random) -> None:
        self.rows: list[Row] = []
        self.not_shown: list[tuple[str, str]] = []
        self.crashed = False
        self._folder = folder
        self._chosen = chosen
        self._rng = rng

    def wants(self, *names: str) -> bool:
        """Whether one of them was chosen."""
        return not self._chosen or any(name in self._chosen for name in names)

    def run(self, name: str, scenario: Callable[[], Scenario]) -> None:
        self._run(name, lambda: asyncio.run(scenario()))

    def run_parts(
        self, name: str, clusters: Sequence[Any], scenario: Callable[[Cluster], Scenario]
    ) -> None:
        """One row of the same on several clusters, one after the other."""

        def part(cluster: Any) -> Row:
            with cluster() as made:
                return asyncio.run(scenario(made))

        self._run(name, lambda: together([part(cluster) for cluster in clusters]))

    def _run(self, name: str, run: Callable[[], Row]) -> None:
        if not self.wants(name):
            return
        began = time.monotonic()
        try:
            row = run()
        except Exception as error:  # the other scenarios still tell something
            tell(f"{name}: {type(error).__name__}: {error}")
            self.crashed = True
            return
        self.rows.append(row)
        counted = f"{row.verdict.turns} turns, {row.verdict.acknowledged} acknowledged"
        tell(f"{name}: {time.monotonic() - began:.0f} s, {counted}; {row.faults}")
        if row.verdict.wrong:
            tell(row.verdict.told())

    def all(self, model: Model) -> None:
        if self.wants("sqlite", "sqlite-kills", "sqlite-silent", "sqlite-cuts"):
            self._on_sqlite(model)
        if self._chosen and not self.wants(*SHARED):
            return
        qdrant = Qdrant(self._new())
        try:
            with (
                mongo_server(self._new()) as mongo,
                Proxy("127.0.0.1", qdrant.port) as proxy,
            ):
                if isinstance(mongo, str):
                    self.not_shown.append(("R2, R4, R6, R11 on a shared store", mongo))
                    return
                tell(f"the shared store is {mongo.name} {mongo.version}")
                self._shared(model, mongo, qdrant, proxy)
        finally:
            qdrant.kill()

    def _on_sqlite(self, model: Model) -> None:
        rng = self._rng
        with on_sqlite(self._new(), model, rng) as one:
            self.run("sqlite", lambda: at_once(one, model, rng, turns=15, users=10))
            self.run("sqlite-kills", lambda: killed(one, model, rng, kills=60, **FEW))
            self.run(
                "sqlite-silent", lambda: killed(one, model, rng, kills=40, retries=False, **FEW)
            )
            self.run("sqlite-cuts", lambda: cut(one, model, rng, rounds=20))

    def _shared(self, model: Model, mongo: Mongo, qdrant: Qdrant, proxy: Proxy) -> None:
        rng = self._rng

        def cluster(processes: int, **more: Any) -> Any:
            return on_mongo(
                self._new(), model, rng, mongo=mongo, qdrant=qdrant, processes=processes, **more
            )

        if self.wants("two-kills", "zombies", "cuts"):
            with cluster(2) as two:
                self.run("two-kills", lambda: killed(two, model, rng, kills=40, **FEW))
                self.run("zombies", lambda: awakened(two, model, rng, rounds=12))
                self.run("cuts", lambda: cut(two, model, rng, rounds=20))
        if self.wants("index-away"):
            with cluster(2, index={"url": f"http://127.0.0.1:{proxy.port}"}) as two:
                self.run(
                    "index-away",
                    lambda: index_away(two, model, rng, proxy=proxy, seconds=60, **FEW),
                )
        self.run_parts(
            "at-once",
            # New stores each: a server that knows no second index reads all there is.
            [lambda: cluster(PROCESSES, session={"lease": "10s"})] * AT_ONCE_ROUNDS,
            lambda four: at_once(four, model, rng, turns=21, users=8),
        )
        if self.wants("four-kills", "store-kills"):
            with cluster(PROCESSES) as four:
                self.run("four-kills", lambda: killed(four, model, rng, kills=64, **FEW))
                self._kill_the_store(model, mongo, four)

    def _kill_the_store(self, model: Model, mongo: Mongo, four: Cluster) -> None:
        restart = mongo.kill_and_restart
        if restart is None:
            why = f"nothing here can kill {mongo.name} and start it again with its data"
            self.not_shown.append(("R2", why))
            return
        self.run(
            "store-kills",
            lambda: store_killed(four, model, self._rng, kills=10, kill_and_restart=restart, **FEW),
        )

    def _new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))


def machine(seed: int) -> bool:
    """The state machine with many steps; whether it passed."""
    began = time.monotonic()
    arguments = [sys.executable, "-m", "pytest", str(MACHINE_TEST), "-x"]
    more = {"STRATA_MACHINE_EXAMPLES": "5", "STRATA_MACHINE_STEPS": "40"}
    env = {**environment(**more), **stores()}
    done = subprocess.run(
        [*arguments, f"--hypothesis-seed={seed}"], env=env, cwd=ROOT, check=False,
        stdout=sys.stderr,
    )  # fmt: skip
    tell(f"machine: {time.monotonic() - began:.0f} s, exit code {done.returncode}")
    return done.returncode == 0


def stores() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("STRATA_TEST_")}


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("names", nargs="*", help="run these scenarios only")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else os.environ.get("STRATA_SEED")
    seed = int(seed or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="strata-torture-") as folder,
        modelling(Path(folder)) as model,
    ):
        torture = Torture(Path(folder), given.names, random.Random(seed))
        torture.all(model)
    passed = not torture.wants("machine") or machine(seed)
    print(table(torture.rows, torture.not_shown))
    print()
    print(totals(torture.rows))
    print(f"{(time.monotonic() - began) / 60:.0f} minutes on {os.cpu_count()} cores.")
    wrong = any(row.verdict.wrong for row in torture.rows)
    return 1 if wrong or torture.crashed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
