"""What a turn costs in a large database, and on servers: two services take turns alternately.

Each service has its own stores: embedded ones, empty and filled with other users' turns and
points; with `--store` and `--index` the same on those servers, and each store without an index,
so that the stores themselves can be compared. Whatever else the machine does, it does to both,
and only the two that are compared run: with more of them every one would be met cold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec

from evals.speed.filling import fill
from evals.speed.processes import Service, model_server, service
from evals.speed.turns import model_calls, quiet, take_turn, user_texts
from memory import MemoryConfig
from memory.models import now

TURNS_A_SESSION = 10  # of the measured user
# What is compared with what, and how much more it may cost.
PAIRS = (
    ("embedded, filled", "embedded, empty", 1.2),
    ("servers, filled", "servers, empty", 1.2),
    ("MongoDB, no index", "SQLite, no index", 2.0),
)


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One service that is measured."""

    name: str
    store: str
    index: str
    collection: str = "strata"
    filled: bool = False


class ScaleFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in milliseconds, from the request to the model call."""

    name: str
    samples: int
    model_call_ms: float


def variants(folder: Path, *, store: str | None, index: str | None, turns: int) -> list[Variant]:
    def embedded(name: str, index: str = "edge", *, filled: bool = False) -> Variant:
        path = folder / name.replace(" ", "-")
        return Variant(
            name=name,
            store=f"sqlite:///{path}/strata.db",
            index="none" if index == "none" else f"edge:///{path}/index",
            filled=filled,
        )

    found = [embedded("embedded, empty"), embedded("embedded, filled", filled=True)]
    if store is None:
        return found
    found.append(embedded("SQLite, no index", "none"))
    found.append(Variant(name="MongoDB, no index", store=database(store, "alone"), index="none"))
    for name, filled in (("empty", False), (f"filled_{turns}", True)):
        found.append(
            Variant(
                name=f"servers, {name.partition('_')[0]}",
                store=database(store, name),
                index=index or "none",
                collection=f"strata_bench_{name}",
                filled=filled,
            )
        )
    return found


def database(url: str, name: str) -> str:
    """The same server's database for this variant."""
    parts = urlsplit(url)
    query = parts.query or ("authSource=admin" if parts.username else "")
    return urlunsplit(parts._replace(path=f"/strata_bench_{name}", query=query))


async def run(
    *,
    rounds: int,
    turns: int,
    points: int,
    store: str | None,
    index: str | None,
    tell: Callable[[str], None],
) -> list[ScaleFigures]:
    with tempfile.TemporaryDirectory(prefix="strata-bench-") as name:
        folder = Path(name)
        measured = variants(folder, store=store, index=index, turns=turns)
        for variant in measured:
            if variant.filled:
                await fill(
                    _config(variant),
                    name=variant.name,
                    turns=turns,
                    points=points,
                    tell=tell,
                )
        by_name = {variant.name: variant for variant in measured}
        found: list[ScaleFigures] = []
        for above, below, _ in PAIRS:
            if above in by_name:
                own = folder / f"services{len(found)}"
                own.mkdir()
                found += await _measure(own, [by_name[below], by_name[above]], rounds, tell)
        return found


def _config(variant: Variant) -> MemoryConfig:
    return MemoryConfig.model_validate(
        {
            "store": {"url": variant.store, "timeout": "60s"},
            "index": {"url": variant.index, "collection": variant.collection, "timeout": "60s"},
        }
    )


async def _measure(
    folder: Path, measured: list[Variant], rounds: int, tell: Callable[[str], None]
) -> list[ScaleFigures]:
    texts = user_texts()
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(model_server(folder))
        running: list[tuple[Variant, Service, httpx.AsyncClient]] = []
        for number, variant in enumerate(measured):
            own = folder / f"service{number}"
            own.mkdir()
            started = await stack.enter_async_context(
                service(
                    own,
                    model_url,
                    {
                        "STRATA_STORE__URL": variant.store,
                        "STRATA_INDEX__URL": variant.index,
                        "STRATA_INDEX__COLLECTION": variant.collection,
                    },
                )
            )
            client = httpx.AsyncClient(base_url=started.url, timeout=60, trust_env=False)
            running.append((variant, started, await stack.enter_async_context(client)))
        names = " and ".join(variant.name for variant in measured)
        tell(f"{rounds} rounds over {names}")
        salt = int(now().timestamp())
        for n in range(rounds):
            for _, _, client in running:
                await take_turn(client, texts, f"{salt}-{n // TURNS_A_SESSION}", n, f"turn-{n}")
                await quiet(client)
        for _, _, client in running:
            await _forget(client)
        return [
            ScaleFigures(
                name=variant.name,
                samples=rounds,
                model_call_ms=round(median(_times(started, rounds)), 2),
            )
            for variant, started, _ in running
        ]


async def _forget(client: httpx.AsyncClient) -> None:
    """What was measured leaves servers as it found them."""
    for session in (await client.get("/v1/sessions?limit=1000")).json()["sessions"]:
        await client.delete(f"/v1/sessions/{session['session_id']}")


def _times(started: Service, rounds: int) -> list[float]:
    found = model_calls(started.log)
    # The first turns find cold caches, and a session's first window is empty everywhere.
    return [found[f"turn-{n}"] for n in range(min(TURNS_A_SESSION, rounds // 2), rounds)]


def table(figures: list[ScaleFigures]) -> str:
    """The figures as Markdown, with the ratios that are bounded."""
    by_name = {f.name: f.model_call_ms for f in figures}
    lines = ["| service | request to model call (ms, median) |", "|---|---|"]
    lines += [f"| {name} | {ms} |" for name, ms in by_name.items()]
    lines += ["", "| ratio | bound | measured |", "|---|---|---|"]
    lines += [
        f"| {above} / {below} | {bound} | {by_name[above] / by_name[below]:.2f} |"
        for above, below, bound in PAIRS
        if above in by_name
    ]
    return "\n".join(lines) + "\n"
