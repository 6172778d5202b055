"""What a turn costs the service itself: latency to the first model call, memory, start-up.

A real service process, a real OpenAI client in it, a fake model server on the other side of a
socket. Short sessions (their message 20) and one long session (from message 2,000 on) take turns
of the same user alternately, so that the ratio holds on a noisy machine. Times are those of
the service's own log: from the arrival of the request to the model call.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx
import msgspec

from evals.speed.processes import model_server, service
from evals.speed.turns import model_calls, quiet, take_turn, user_texts

LONG_MESSAGES = 2_000
SHORT_MESSAGES = 20
MEMORY_TURNS = 2_000
BASELINE_TURNS = 200


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds are medians; kilobytes are of resident memory."""

    index: str
    samples: int
    fsync_ms: float
    short_ms: float
    long_ms: float
    ratio: float
    first_turn_ms: float
    port_seconds: float
    rss_growth_kb: int
    passages: int
    kb_per_passage: float | None


async def run(*, rounds: int, tell: Callable[[str], None]) -> list[Figures]:
    """The figures without an index and with Edge; embedding is off in both."""
    return [await _measure(index, rounds, tell) for index in ("none", "edge")]


async def _measure(index: str, rounds: int, tell: Callable[[str], None]) -> Figures:
    with tempfile.TemporaryDirectory(prefix="strata-bench-") as name:
        folder = Path(name)
        texts = user_texts()
        fsync = fsync_ms(folder)
        indexed = {"STRATA_INDEX__URL": "none"} if index == "none" else {}
        async with (
            model_server(folder) as model_url,
            service(folder, model_url, indexed) as started,
        ):
            async with httpx.AsyncClient(base_url=started.url, timeout=60, trust_env=False) as http:
                tell(f"index {index}: filling a session of {LONG_MESSAGES} messages")
                for n in range(BASELINE_TURNS):
                    await take_turn(http, texts, "long", n, f"fill-{n}")
                await quiet(http)
                before = _rss_kb(started.process.pid)
                for n in range(BASELINE_TURNS, LONG_MESSAGES // 2):
                    await take_turn(http, texts, "long", n, f"fill-{n}")
                await quiet(http)
                tell(f"index {index}: {rounds} rounds, short and long session in turns")
                turns = SHORT_MESSAGES // 2
                n = LONG_MESSAGES // 2
                for round_ in range(rounds):
                    for turn in range(turns - 1):
                        await take_turn(http, texts, f"short-{round_}", turn, "warm")
                    await quiet(http)
                    await take_turn(http, texts, f"short-{round_}", turns, f"short-{round_}")
                    await quiet(http)
                    await take_turn(http, texts, "long", n, f"long-{round_}")
                    n += 1
                fresh = time.perf_counter()
                await take_turn(http, texts, "fresh", 0, "fresh")
                fresh = time.perf_counter() - fresh
                tell(f"index {index}: on to {MEMORY_TURNS} turns")
                while n < MEMORY_TURNS:
                    await take_turn(http, texts, "long", n, f"fill-{n}")
                    n += 1
                await quiet(http)
                grown = _rss_kb(started.process.pid) - before
                points = (await http.get("/health/ready")).json()["index"].get("points", 0)
            times = model_calls(started.log)
            short = [times[f"short-{i}"] for i in range(rounds)]
            long = [times[f"long-{i}"] for i in range(rounds)]
            passages = points - 2 * BASELINE_TURNS if points else 0
            return Figures(
                index=index,
                samples=rounds,
                fsync_ms=round(fsync, 2),
                short_ms=round(median(short), 2),
                long_ms=round(median(long), 2),
                ratio=round(median(long) / median(short), 3),
                first_turn_ms=round(fresh * 1000, 1),
                port_seconds=round(started.seconds_to_port, 2),
                rss_growth_kb=grown,
                passages=passages,
                kb_per_passage=round(grown / passages, 2) if passages else None,
            )


def fsync_ms(folder: Path, samples: int = 100) -> float:
    """The median of a 4 kB append and its fsync on the disk that holds the data."""
    times = []
    with (folder / "fsync").open("ab", buffering=0) as file:
        for _ in range(samples):
            file.write(b"x" * 4096)
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return median(times)


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise OSError("no VmRSS in /proc: this machine does not show it")


def table(figures: list[Figures]) -> str:
    """The figures as Markdown, each against its bound."""
    lines = [
        "| what | bound | " + " | ".join(f"index {f.index}" for f in figures) + " |",
        "|---|---|" + "---|" * len(figures),
    ]
    rows: list[tuple[str, str, Callable[[Figures], str]]] = [
        ("fsync of 4 kB here (ms, median)", "", lambda f: f"{f.fsync_ms}"),
        (
            f"request to model call at message {SHORT_MESSAGES} (ms, median)",
            "5 + one fsync",
            lambda f: f"{f.short_ms}",
        ),
        (f"the same at message {LONG_MESSAGES}", "5 + one fsync", lambda f: f"{f.long_ms}"),
        ("ratio", "1.15", lambda f: f"{f.ratio}"),
        ("first turn of a new session, whole (ms)", "", lambda f: f"{f.first_turn_ms}"),
        ("start to open port (s)", "3", lambda f: f"{f.port_seconds}"),
        (
            f"growth of resident memory, turn {BASELINE_TURNS} to {MEMORY_TURNS} (kB)",
            "5,000 without index",
            lambda f: f"{f.rss_growth_kb}",
        ),
        (
            "of it per passage in the index (kB)",
            "12",
            lambda f: "–" if f.kb_per_passage is None else f"{f.kb_per_passage}",
        ),
    ]
    lines += [
        f"| {name} | {bound} | " + " | ".join(show(f) for f in figures) + " |"
        for name, bound, show in rows
    ]
    return "\n".join(lines) + "\n"
