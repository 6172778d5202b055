"""R9: answers whose connection is cut at a random byte, and resumed, mostly on another worker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from system.process import Model
from system.streams import Event, parse

from torture.clients import ANSWER_SECONDS, PAUSE_SECONDS, Clients
from torture.cluster import Cluster
from torture.said import Attempt, Said
from torture.scenarios import TOKEN_SECONDS, Row, clients

LONGEST_BYTES = 4000  # most of them inside the answer, some before it, some after its end
CUTS = 3  # of one answer, at most


@dataclass
class AnswerBuffer:
    """What one client has of one answer, over all its connections."""

    events: list[Event] = field(default_factory=list)
    cuts: int = 0

    @property
    def text(self) -> str:
        return "".join(event.data["text"] for event in self.events if event.name == "token")

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].name in ("done", "error")


async def cut(
    cluster: Cluster, model: Model, rng: random.Random, *, rounds: int, sessions: int = 10
) -> Row:
    """In each round every session gets one answer in pieces; they make up the stored one, byte
    for byte, and the model was called once."""
    cuts = 0
    wrong: list[str] = []
    async with clients(cluster, model, rng, users=2, sessions=sessions // 2) as people:
        model.mode("slow", delay=TOKEN_SECONDS)
        for number in range(rounds):
            found = await asyncio.gather(
                *(in_pieces(people, cluster, place, number, rng) for place in people.places)
            )
            for place, (said, pieces) in zip(people.places, found, strict=True):
                cuts += pieces.cuts
                wrong += _compare(said, pieces, await people.history(place))
            await people.collect()
        model.mode()
        verdict = await people.verdict()
        verdict.lost += wrong
    return Row("R9", cluster.store, rounds * sessions, f"{cuts} connections cut", verdict)


async def in_pieces(
    people: Clients, cluster: Cluster, place: Any, number: int, rng: random.Random
) -> tuple[Said, AnswerBuffer]:
    said = Said(*place, "t0", number)
    people.said.append(said)
    pieces = AnswerBuffer()
    headers = {"X-User-Id": said.user, "Idempotency-Key": said.key}
    url = cluster.address()
    deadline = time.monotonic() + ANSWER_SECONDS
    while not pieces.ended:
        assert time.monotonic() < deadline, f"no answer in time: {said} {pieces}"
        after = rng.randrange(LONGEST_BYTES) if pieces.cuts < CUTS else None
        if not pieces.events:
            path, more = f"/v1/sessions/{said.session}/turns", headers
            body = {"message": said.text, "stream": True}
            request = people.http.build_request("POST", url + path, json=body, headers=more)
        else:
            path = f"/v1/turns/{pieces.events[0].data['turn_id']}/events"
            more = {**headers, "Last-Event-ID": pieces.events[-1].id}
            del more["Idempotency-Key"]
            request = people.http.build_request("GET", url + path, headers=more)
        if not await _read(people.http, request, pieces, after):
            await asyncio.sleep(PAUSE_SECONDS)
        url = cluster.other(url)
    attempt = Attempt(status=200)
    for event in pieces.events:
        attempt.take(event)
    said.attempts.append(attempt)
    said.outcome = "done" if attempt.ended == "done" else "failed"
    return said, pieces


async def _read(
    http: httpx.AsyncClient, request: httpx.Request, pieces: AnswerBuffer, cut_after: int | None
) -> bool:
    """Whole events until the end or the cut; False when it is not to be had now."""
    response = await http.send(request, stream=True)
    try:
        if response.status_code != 200:
            await response.aread()
            told = f"{request.method} {response.status_code}: {response.text}"
            assert response.status_code == 409, told
            assert response.json()["code"] == "turn_running", told
            return False
        rest, left = b"", cut_after
        async for part in response.aiter_bytes():
            if left is not None:
                part, left = part[:left], left - len(part)
            *blocks, rest = (rest + part).split(b"\n\n")
            for block in blocks:
                if event := parse(block.decode("utf-8")):
                    pieces.events.append(event)
            if left is not None and left <= 0:
                pieces.cuts += 1
                return True
        return True
    finally:
        await response.aclose()


def _compare(said: Said, pieces: AnswerBuffer, history: list[Mapping[str, Any]]) -> list[str]:
    """The places in the event ids count the code points that were received up to them."""
    wrong, received = [], 0
    for event in pieces.events:
        if event.name == "token":
            received += len(event.data["text"])
            if event.id.rpartition(":t")[2] != str(received):
                wrong.append(f"{said.marker}: {event.id} after {received} code points")
    replies = {one["content"]: two["content"] for one, two in pairwise(history)}
    if replies.get(said.text) != pieces.text:
        wrong.append(f"{said.marker}: {pieces.text!r}, stored {replies.get(said.text)!r}")
    names = [event.name for event in pieces.events if event.name != "token"]
    if names != ["accepted", "context", "done"]:
        wrong.append(f"{said.marker}: {names}")
    return wrong
