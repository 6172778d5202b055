"""R9: `Last-Event-ID` gives exactly the rest of an answer, from any worker, without the model."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.proxy import Proxy
from waiting import eventually

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import (
    Event,
    ask,
    asked,
    asking,
    history,
    parse,
    parse_all,
    read_events,
    read_until,
    text_of,
)

Groups = dict[str, dict[str, Any]]
QUESTION = "Tell me of the harbour."
# One code point may be one to four bytes, and one letter several code points.
WORDS = ("mole", "Grüße", "我很好", "👩‍👩‍👧", "𝒳𝒴", "e\u0301te\u0301", '"quay"\\', "\u2028line")
ENDS = ("done", "error")


def long_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


class Reader:
    """A client whose connection breaks at random bytes and which takes up where it was."""

    def __init__(self, proxies: Sequence[Proxy], session: str, rng: random.Random) -> None:
        self._proxies, self._session, self._rng = proxies, session, rng
        self.events: list[Event] = []
        self.cuts = 0
        self.turn_id = ""

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].name in ENDS

    async def begin(self) -> None:
        """TurnRequest until it is known which turn it became; its key makes it one."""
        while not self.turn_id:
            headers = {"Idempotency-Key": "k"}
            body = {"message": QUESTION, "stream": True}
            path = f"/v1/sessions/{self._session}/turns"
            await self._read("POST", path, headers=headers, json=body)

    async def go_on(self) -> None:
        headers = {"Last-Event-ID": self.events[-1].id} if self.events else {}
        await self._read("GET", f"/v1/turns/{self.turn_id}/events", headers=headers)

    async def _read(self, method: str, path: str, **request: Any) -> None:
        proxy = self._rng.choice(self._proxies)
        proxy.mode("cut", after_bytes=self._rng.randrange(1, 2500))
        got = b""
        try:
            async with (
                httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{proxy.port}",
                    trust_env=False,
                    timeout=20,
                    headers={"X-User-Id": self._session},
                ) as client,
                client.stream(method, path, **request) as response,
            ):
                if response.status_code == 409:
                    self.turn_id = (await _json(response))["turn_id"]
                    return
                assert response.status_code == 200
                async for part in response.aiter_bytes():
                    got += part
        except httpx.TransportError:
            self.cuts += 1
        *blocks, _ = got.split(b"\n\n")
        self.events += [e for block in blocks if (e := parse(block.decode()))]
        if self.events:
            self.turn_id = self.events[0].data["turn_id"]


async def _json(response: httpx.Response) -> Any:
    await response.aread()
    return response.json()


async def assert_resumed(
    services: Sequence[Service], model: Model, session: str, rng: random.Random
) -> None:
    text = long_text(rng, 150)
    model.mode("slow", delay=0.01, text=text)
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(Proxy("127.0.0.1", int(s.url.rpartition(":")[2]))) for s in services
        ]
        live = Reader(proxies, session, rng)
        await live.begin()
        while not live.ended:
            await live.go_on()
        afterwards = Reader(proxies, session, rng)
        afterwards.turn_id = live.turn_id
        while not afterwards.ended:
            await afterwards.go_on()
    assert live.cuts + afterwards.cuts >= 3
    async with services[0].client(session) as client:
        turn = (await client.get(f"/v1/turns/{live.turn_id}")).json()
        assert [m["role"] for m in await history(client, session)] == ["user", "assistant"]
    assert turn["assistant"]["content"] == text
    assert len(model.requests()) == 1, "no second model call"
    for reader in (live, afterwards):
        assert text_of(reader.events) == text
        names = [event.name for event in reader.events]
        assert names[:2] == ["accepted", "context"]
        assert set(names[2:-1]) == {"token"}
        assert names[-1] == "done"
        reached = 0
        for event in reader.events[2:-1]:
            reached += len(event.data["text"])
            assert event.id == f"{live.turn_id}.1:t{reached}"
        assert reader.events[-1].data == live.events[-1].data


async def test_a_reader_that_is_cut_anywhere_gets_every_byte_once(
    plain: Service, model: Model, session: str, rng: random.Random
) -> None:
    await assert_resumed([plain], model, session, rng)


async def test_it_may_come_back_to_any_other_process(
    pair: tuple[Service, Service], model: Model, session: str, rng: random.Random
) -> None:
    await assert_resumed(pair, model, session, rng)


async def events_of(
    client: httpx.AsyncClient, turn_id: str, last: str | None = None
) -> list[Event]:
    headers = {"Last-Event-ID": last} if last is not None else {}
    response = await client.get(f"/v1/turns/{turn_id}/events", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse_all(response.text) if response.text else []


async def test_after_the_end_each_event_id_gives_what_came_after_it(
    client: httpx.AsyncClient, model: Model, session: str, rng: random.Random
) -> None:
    text = long_text(rng, 30)
    model.mode(text=text)
    first = await ask(client, session, QUESTION)
    turn_id = first[0].data["turn_id"]
    for n, event in enumerate(first):
        rest = await events_of(client, turn_id, event.id)
        assert text_of(first[: n + 1]) + text_of(rest) == text
        heads = [e for e in rest if e.name != "token"]
        assert [(e.id, e.data) for e in heads] == [
            (e.id, e.data) for e in first[n + 1 :] if e.name != "token"
        ]
    for at in {rng.randrange(len(text) + 1) for _ in range(20)}:  # inside a token, too
        assert text_of(await events_of(client, turn_id, f"{turn_id}.1:t{at}")) == text[at:]
    for last in (None, ""):
        whole = await events_of(client, turn_id, last)
        assert [e.name for e in whole] == ["accepted", "context", "token", "done"]
        assert (whole[0].data, whole[-1].data) == (first[0].data, first[-1].data)
    assert len(model.requests()) == 1


async def test_the_events_of_a_failed_turn_end_with_its_error_again(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("reset", chunks=2, text="one two three")
    first = await ask(client, session, QUESTION)
    again = await events_of(client, first[0].data["turn_id"])
    assert text_of(again) == text_of(first) == "one two"
    assert (again[-1].id, again[-1].data) == (first[-1].id, first[-1].data)
    assert again[-1].name == "error"


async def test_what_a_crash_has_lost_is_told_as_interrupted(model: Model, folder: Path) -> None:
    """Less is stored than the reader has seen."""
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"partial_flush": "60s", "lease": "60s"}
    ) as service:
        model.mode("hang_after", chunks=3, text="one two three four")
        async with service.client() as client, asking(client, "s", QUESTION) as events:
            found = await read_until(events, lambda so_far: text_of(so_far) == "one two three")
            service.kill()
        service.start()
        async with service.client() as client:
            turn_id = found[0].data["turn_id"]
            for last in (found[-1].id, found[1].id, None):
                rest = await events_of(client, turn_id, last)
                assert rest[-1].name == "error"
                assert rest[-1].id == f"{turn_id}.1:e"
                assert rest[-1].data["code"] == "interrupted"
                assert rest[-1].data["retryable"] is True
                assert text_of(rest) == ""
    assert len(model.requests()) == 1


async def test_an_older_attempt_is_told_that_it_was_begun_again(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("reset", chunks=2, text="one two three")
    first = await asked(client, session, QUESTION, key="k", stream=True)
    old = parse_all(first.text)
    turn_id = old[0].data["turn_id"]
    model.mode("slow", delay=0.05, text="a new answer " * 5)
    again = asyncio.create_task(asked(client, session, QUESTION, key="k", stream=True))
    await eventually(lambda: len(model.requests()) == 2)
    for _ in range(2):  # while it runs, and when it has ended
        for event in old:
            (told,) = await events_of(client, turn_id, event.id)
            assert (told.name, told.id) == ("error", f"{turn_id}.1:e")
            assert told.data["code"] == "restarted"
            assert told.data["retryable"] is True
        new = parse_all((await again).text)
    assert new[-1].name == "done"
    assert {e.id.rpartition(":")[0] for e in new} == {f"{turn_id}.2"}
    assert text_of(await events_of(client, turn_id)) == text_of(new)


async def test_a_reader_elsewhere_is_told_when_the_turn_is_begun_again(
    model: Model, folder: Path, shared: Groups
) -> None:
    """It reads along from the store while another process dies and a third runs it again."""
    shared = {**shared, "session": {"lease": "1s", "partial_flush": "50ms"}}
    with ExitStack() as stack:
        one = stack.enter_context(serving(folder / "1", fake=model, **shared))
        two = stack.enter_context(serving(folder / "2", fake=model, **shared))
        model.mode("hang_after", chunks=3, text="one two three four")
        async with one.client() as client, two.client() as other:
            asking_first = asyncio.create_task(asked(client, "s", QUESTION, key="k", stream=True))
            await eventually(
                lambda: model.requests() and model.requests()[0]["sent"] == "one two three"
            )
            turn_id = (await history(other, "s"))[0]["turn_id"]
            along = asyncio.create_task(events_of(other, turn_id))
            one.kill()
            with pytest.raises(httpx.HTTPError):
                await asking_first
            model.mode(text="the whole answer")

            async def again() -> Any:
                response = await asked(other, "s", QUESTION, key="k")
                return response if response.status_code == 200 else None

            done = await eventually(again)
            assert done.json()["attempt"] == 2
            events = await along
            assert events[-1].data["code"] in ("interrupted", "restarted")
            assert text_of(events) in ("", "one two three")


async def test_events_come_as_a_stream_alone(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    turn_id = (await ask(client, session, QUESTION))[0].data["turn_id"]
    path = f"/v1/turns/{turn_id}/events"
    for accept, status in (("application/json", 406), ("text/event-stream", 200), ("*/*", 200)):
        response = await client.get(path, headers={"Accept": accept})
        assert response.status_code == status


async def test_who_reads_along_elsewhere_keeps_the_answer_going(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], model: Model, session: str
) -> None:
    """R8 with R9: its reader moved to another worker; `session.detach` does not end it."""
    one, two = both
    text = " ".join(f"w{n}" for n in range(70))
    model.mode("slow", delay=0.08, text=text)  # longer than PAIR_DETACH
    async with asking(one, session, QUESTION) as events:
        accepted = await anext(events)
    rest = await events_of(two, accepted.data["turn_id"], accepted.id)
    assert text_of(rest) == text
    assert [e.name for e in rest][:2] == ["context", "token"]
    assert rest[-1].name == "done"
    assert sum(e.name == "token" for e in rest) > 5, "it came while it was told"
    (request,) = model.requests()
    assert request["disconnected_at"] is None


async def test_a_worker_that_stops_lets_go_of_those_who_read_along(
    model: Model, folder: Path, shared: Groups
) -> None:
    """Their streams end cleanly, without an end of the turn; elsewhere they get the rest."""
    with ExitStack() as stack:
        one = stack.enter_context(serving(folder / "1", fake=model, **shared))
        two = stack.enter_context(serving(folder / "2", fake=model, **shared))
        text = " ".join(f"w{n}" for n in range(40))
        model.mode("slow", delay=0.08, text=text)
        async with one.client() as client, two.client() as other:
            asking_first = asyncio.create_task(ask(client, "s", QUESTION))
            await eventually(model.requests)
            turn_id = (await history(client, "s"))[0]["turn_id"]
            found: list[Event] = []
            async with other.stream("GET", f"/v1/turns/{turn_id}/events") as response:
                async for event in read_events(response):
                    found.append(event)
                    if len(found) == 4:
                        two.child.signal(signal.SIGTERM)
            assert "token" in [e.name for e in found]
            assert found[-1].name == "token"
            assert await asyncio.to_thread(two.child.wait) == 0
            rest = await events_of(client, turn_id, found[-1].id)
            assert text_of(found) + text_of(rest) == text
            assert rest[-1].name == "done"
            assert text_of(await asking_first) == text
