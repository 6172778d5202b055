"""CPU of a turn: user and system time of a whole service process, over the turns that it took.

With another checkout to compare against, both services run at once and take the same turns in
alternating rounds, so that whatever else the machine does, it does to both; the ratio is the
median of the rounds' ratios. A turn is streamed and read to its end; what the projections do for
it counts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import httpx
import msgspec

from evals.speed.processes import ROOT, Service, model_server, service
from evals.speed.turns import quiet, user_texts

TURNS_A_SESSION = 20
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the rounds, in milliseconds of CPU a turn; `ratio` is this checkout's to the
    other's."""

    turns: int
    rounds: int
    ms: float
    against: str | None = None
    against_ms: float | None = None
    ratio: float | None = None


async def run(
    *,
    turns: int,
    rounds: int,
    against: Path | None,
    offline: bool,
    tell: Callable[[str], None],
) -> CpuFigures:
    """`turns` in each of `rounds`, after one round that is not counted."""
    checkouts = [ROOT] if against is None else [ROOT, against.resolve()]
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-cpu-"))
        model_url = None
        if not offline:
            model_url = await stack.enter_async_context(model_server(Path(name)))
        running: list[tuple[Service, httpx.AsyncClient]] = []
        for number, checkout in enumerate(checkouts):
            own = Path(name) / f"service{number}"
            own.mkdir()
            started = await stack.enter_async_context(
                service(own, model_url, {}, checkout=checkout)
            )
            client = httpx.AsyncClient(base_url=started.url, timeout=60, trust_env=False)
            running.append((started, await stack.enter_async_context(client)))
        found: list[list[float]] = []
        for round_ in range(-1, rounds):
            # Each goes first as often as second.
            order = running if round_ % 2 else running[::-1]
            took = {one.url: await _round(one, http, round_, turns) for one, http in order}
            if round_ >= 0:
                found.append([took[one.url] for one, _ in running])
                tell(f"round {round_ + 1}: " + ", ".join(f"{ms:.2f} ms" for ms in found[-1]))
    ms, *others = [round(median(column), 3) for column in zip(*found, strict=True)]
    return CpuFigures(
        turns=turns,
        rounds=rounds,
        ms=ms,
        against=str(against) if against else None,
        against_ms=others[0] if others else None,
        ratio=round(median(row[0] / row[1] for row in found), 3) if others else None,
    )


async def _round(one: Service, http: httpx.AsyncClient, round_: int, turns: int) -> float:
    """Milliseconds of CPU a turn."""
    texts = user_texts()
    before = cpu_seconds(one.process.pid)
    for n in range(turns):
        session = f"round{round_}-{n // TURNS_A_SESSION}"
        body = {"message": f"{texts[n % len(texts)]} ({n})", "stream": True}
        async with http.stream("POST", f"/v1/sessions/{session}/turns", json=body) as response:
            response.raise_for_status()
            async for _ in response.aiter_raw():
                pass
    await quiet(http)
    return (cpu_seconds(one.process.pid) - before) * 1000 / turns


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def table(figures: CpuFigures) -> str:
    """The figures as Markdown."""
    lines = [
        f"| CPU of a turn ({figures.turns} turns in each of {figures.rounds} rounds) | ms |",
        "|---|---|",
        f"| this checkout | {figures.ms} |",
    ]
    if figures.against is not None:
        lines += [f"| the other | {figures.against_ms} |", f"| ratio | {figures.ratio} |"]
    return "\n".join(lines) + "\n"
