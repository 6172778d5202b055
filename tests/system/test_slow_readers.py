"""R20: clients that do not read cost the service nothing but their place."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from waiting import PATIENCE_SECONDS, eventually

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import answer, history

USERS = 10
WORD = "word "
PIECE, PIECE_TOKENS = "eightwordsthatmakeonelongpieceofit ", 8  # at least
# Slower than the service could be: what it has read ahead of the model is no reader's fault.
PIECES_A_SECOND = 2_500
RECEIVE_BYTES = 2048
# 50 MB for 500 clients: some of it once, for whatever the first answers at the same time need.
BYTES_ONCE, BYTES_PER_CLIENT = 15_000_000, 70_000
SAMPLES, TRIES = 100, 3


@contextmanager
def unread(service: Service, *, user: str, session: str) -> Iterator[socket.socket]:
    """A client that asks for a stream and does not read it."""
    body = json.dumps({"message": "tell me everything", "stream": True}).encode()
    head = (
        f"POST /v1/sessions/{session}/turns HTTP/1.1\r\nHost: 127.0.0.1\r\nX-User-Id: {user}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    port = int(service.url.rpartition(":")[2])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        client.connect(("127.0.0.1", port))
        client.sendall(head.encode() + body)
        yield client


def turns(service: Service, status: str) -> int:
    with closing(sqlite3.connect(service.folder / ".strata" / "strata.db")) as db:
        found = db.execute("SELECT count(*) FROM turns WHERE status = ?", (status,)).fetchone()
    return int(found[0])


async def p99(clients: Sequence[httpx.AsyncClient]) -> list[float]:
    """Seconds of a whole turn with each of them, turn by turn, as other processes run here too;
    the best of a few tries."""
    found: list[list[float]] = [[] for _ in clients]
    for _ in range(TRIES):
        seconds: list[list[float]] = [[] for _ in clients]
        for n in range(SAMPLES):
            for client, took in zip(clients, seconds, strict=True):
                began = time.perf_counter()
                await answer(client, f"short{n}", "how are you?")
                took.append(time.perf_counter() - began)
        for best, took in zip(found, seconds, strict=True):
            best.append(sorted(took)[int(0.99 * SAMPLES)])
    return [min(best) for best in found]


async def refused(client: httpx.AsyncClient, status: int, code: str) -> None:
    response: Any = await client.post("/v1/sessions/more/turns", json={"message": "one more?"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("clients", "tokens"),
    [(100, 2_000), pytest.param(500, 2_000, marks=pytest.mark.slow)],
)
async def test_clients_that_do_not_read_hold_up_nobody(
    model: Model, folder: Path, clients: int, tokens: int
) -> None:
    """R20: memory and the others' latency stay; over the limits 429 and 503; all is stored."""
    text = PIECE * (tokens // PIECE_TOKENS)
    async with AsyncExitStack() as stack:
        service = stack.enter_context(
            serving(
                folder,
                fake=model,
                embedding=BY_WORDS,
                index={"url": "none"},  # its memory is another promise
                limits={"streams_per_user": clients // USERS, "streams": clients + 1},
                # All answers grow at the same time, on one core.
                model={"turn_timeout": "30m", "first_token_timeout": "5m", "gap_timeout": "5m"},
                session={"lease": "60s", "detach": "never"},
            )
        )
        process = psutil.Process(service.pid)
        other = await stack.enter_async_context(service.client("other"))
        idle = stack.enter_context(
            serving(folder / "idle", fake=model, embedding=BY_WORDS, index={"url": "none"})
        )
        elsewhere = await stack.enter_async_context(idle.client("other"))
        users = [await stack.enter_async_context(service.client(f"user{n}")) for n in range(USERS)]
        model.mode("ok", text=WORD * 50)
        await p99([other, elsewhere])
        base = process.memory_info().rss
        done = turns(service, "done")

        model.mode("held", delay=clients / PIECES_A_SECOND, text=text)
        for n in range(clients):
            stack.enter_context(unread(service, user=f"user{n % USERS}", session=f"s{n}"))
        await eventually(lambda: turns(service, "running") == clients)
        for user in users:
            await refused(user, 429, "too_many_streams")
        with unread(service, user="filler", session="s"):
            await eventually(lambda: turns(service, "running") == clients + 1)
            await refused(other, 503, "overloaded")
            model.mode("ok", text=WORD * 50)  # lets them go, too

        most = 0

        def all_produced() -> bool:
            nonlocal most
            most = max(most, process.memory_info().rss)
            return turns(service, "done") == done + clients + 1

        await eventually(all_produced, within_seconds=900)
        with_them, without = await p99([other, elsewhere])
        most = max(most, process.memory_info().rss)
        print(
            f"{clients} clients, {tokens} tokens: resident memory + {(most - base) / 1e6:.1f} MB, "
            f"p99 of the others {with_them * 1000:.1f} ms, {without * 1000:.1f} ms without them"
        )
        for n in range(clients):
            *_, stored = await history(users[n % USERS], f"s{n}")
            assert (stored["content"], stored["status"]) == (text, "done")
        assert most - base < BYTES_ONCE + clients * BYTES_PER_CLIENT
        assert with_them < 2 * without


async def test_an_answer_counts_while_somebody_reads_it_however_slowly(
    model: Model, folder: Path
) -> None:
    """R20: it has ended and is stored; what its reader has not taken waits here, not in the
    kernel, and keeps the reader's place."""
    # More than is written ahead of a reader.
    text = "x" * 1_000 + " " + WORD * 50 + ("y" * 1_000 + " ") * 300
    with serving(
        folder, fake=model, embedding=BY_WORDS, index={"url": "none"},
        limits={"streams_per_user": 1},
    ) as service:  # fmt: skip
        async with service.client("anna") as anna:
            model.mode("ok", text=text)
            with unread(service, user="anna", session="s") as client:
                await eventually(lambda: turns(service, "done") == 1)
                for _ in range(3):
                    await refused(anna, 429, "too_many_streams")
                *_, stored = await history(anna, "s")
                assert stored["content"] == text
                # It reads after all, and gets everything.
                client.settimeout(PATIENCE_SECONDS)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
                received = b""
                while b"event: done" not in received:
                    part = client.recv(65_536)
                    assert part, "the stream was cut"
                    received += part
            assert received.count(b"y") >= 300_000

            async def room() -> bool:
                found = await anna.post("/v1/sessions/t/turns", json={"message": "now?"})
                return found.status_code == 200

            await eventually(room)
