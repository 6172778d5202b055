"""Several processes over one MongoDB and one Qdrant server: no state is anywhere else."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import eventually, wait_for

from system.process import Model, Service, serving, strata
from system.streams import answer, ask, asking, history, read_until, text_of

Groups = dict[str, dict[str, Any]]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def workers_of(service: Service) -> list[int]:
    """The processes that have served, oldest first."""
    return [event["pid"] for event in service.events("worker.serving")]


async def found(client: httpx.AsyncClient, query: str, text: str) -> bool:
    answered = await client.get("/v1/memories", params={"q": query})
    return any(text in item["content"] for item in answered.json()["memories"])


@pytest.mark.parametrize("processes", [2, 4])
async def test_a_conversation_hops_between_processes_on_every_turn(
    model: Model, folder: Path, shared: Groups, processes: int
) -> None:
    turns = 12
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(processes):
            service = stack.enter_context(serving(folder / str(number), fake=model, **shared))
            clients.append(await stack.enter_async_context(service.client()))
        model.forget()
        for n in range(turns):
            await answer(clients[n % processes], "s", f"statement {n}.")
        messages = await history(clients[0], "s")
        assert [m["seq"] for m in messages] == list(range(1, 2 * turns + 1))
        assert [m["content"] for m in messages[::2]] == [f"statement {n}." for n in range(turns)]
        for n, request in enumerate(model.requests()):
            said = [m["content"] for m in request["messages"] if m["role"] == "user"]
            for earlier in range(n):
                assert any(f"statement {earlier}." in text for text in said), (n, earlier)
        # Whoever projects it, everybody finds it.
        for client in clients:
            await eventually(lambda client=client: found(client, "statement 3", "statement 3."))


async def test_a_worker_is_replaced_in_mid_conversation(
    model: Model, folder: Path, shared: Groups
) -> None:
    """`server.workers`: one address; a worker that dies is replaced, and nothing else is lost
    than what it was doing."""
    shared = {**shared, "server": {"workers": 2}}
    with serving(folder, fake=model, **shared) as service:
        wait_for(lambda: len(workers_of(service)) == 2)
        first = workers_of(service)
        # No kept connection: each request may reach either worker.
        async with service.client(headers={"Connection": "close"}) as client:
            for n in range(4):
                await answer(client, "s", f"before {n}")
            os.kill(first[0], signal.SIGKILL)
            for n in range(4):  # the other one goes on at once
                await answer(client, "s", f"between {n}")
            wait_for(lambda: len(workers_of(service)) == 3)
            for n in range(4):
                await answer(client, "s", f"after {n}")
            messages = await history(client, "s")
            assert [m["seq"] for m in messages] == list(range(1, 25))
            assert {m["status"] for m in messages} == {"done"}
        pids = workers_of(service)
        assert service.terminate() == 0
        assert not any(alive(pid) for pid in pids)


async def test_workers_drain_on_sigterm_and_end_with_their_parent(
    model: Model, folder: Path, shared: Groups
) -> None:
    shared = {**shared, "server": {"workers": 2}}
    with serving(folder, fake=model, **shared) as service:
        model.mode("slow", delay=0.1, text="one two three four five six")
        events = []
        async with service.client() as client, asking(client, "s", "count") as stream:
            async for event in stream:
                events.append(event)
                if event.name == "accepted":
                    service.child.signal(signal.SIGTERM)
        assert events[-1].name == "done"
        assert text_of(events) == "one two three four five six"
        assert service.child.wait() == 0

        service.start()
        wait_for(lambda: len(workers_of(service)) == 2)
        pids = workers_of(service)
        service.kill()
        wait_for(lambda: not any(alive(pid) for pid in pids), what="workers end without a parent")


async def test_a_dead_workers_turn_and_projections_are_taken_over(
    model: Model, folder: Path, shared: Groups
) -> None:
    """R6: the session is free after the lease, and what nobody has projected is projected."""
    shared = {**shared, "session": {"lease": "1s"}}
    with ExitStack() as stack:
        one = stack.enter_context(serving(folder / "1", fake=model, **shared))
        async with one.client() as client:
            await answer(client, "s", "My dog is called Biscuit.")
            model.mode("slow", delay=0.2, text="a b c d e f g h i j k l")
            async with asking(client, "s", "Tell me the alphabet.") as stream:
                await read_until(stream, "token")
                one.kill()
        two = stack.enter_context(serving(folder / "2", fake=model, **shared))
        model.forget()
        async with two.client() as client:
            events = await ask(client, "s", "And now?")
            assert events[-1].name == "done"
            messages = await history(client, "s")
            assert [m["status"] for m in messages] == [
                "done", "done", "done", "interrupted", "done", "done"
            ]  # fmt: skip
            assert [m["seq"] for m in messages] == [1, 2, 3, 4, 5, 6]
            await eventually(lambda: found(client, "dog", "Biscuit"))
            await eventually(lambda: found(client, "alphabet", "alphabet"))


async def test_a_dead_workers_turn_ends_though_nobody_goes_on_with_its_session(
    model: Model, folder: Path, shared: Groups
) -> None:
    """R6, R1: what was asked last is found from other sessions, too."""
    shared = {**shared, "session": {"lease": "1s"}}
    shared["projector"] = {**shared["projector"], "sweep_interval": "500ms"}
    with ExitStack() as stack:
        one = stack.enter_context(serving(folder / "1", fake=model, **shared))
        two = stack.enter_context(serving(folder / "2", fake=model, **shared))
        model.mode("hang")
        async with (
            one.client() as client,
            asking(client, "s", "My canary is called Xylophon.") as stream,
        ):
            asked = await anext(stream)
            one.kill()
        model.forget()
        async with two.client() as client:
            await eventually(lambda: found(client, "canary", "Xylophon"))
            turn = (await client.get(f"/v1/turns/{asked.data['turn_id']}")).json()
            assert turn["status"] == turn["assistant"]["status"] == "interrupted"


async def test_a_worker_that_wakes_after_its_lease_can_write_nothing(
    model: Model, folder: Path, shared: Groups
) -> None:
    """R6: SIGSTOP past the lease, another answers, SIGCONT: the late write matches nothing."""
    shared = {**shared, "session": {"lease": "500ms"}}
    with ExitStack() as stack:
        one = stack.enter_context(serving(folder / "1", fake=model, **shared))
        two = stack.enter_context(serving(folder / "2", fake=model, **shared))
        model.mode("slow", delay=0.05, text="the zombie speaks " * 10)
        async with one.client() as client, two.client() as other:
            late = []
            async with asking(client, "s", "first") as stream:
                async for event in stream:
                    late.append(event)
                    if len(late) == 6:
                        one.child.signal(signal.SIGSTOP)
                        model.forget()
                        taken = await answer(other, "s", "second")
                        one.child.signal(signal.SIGCONT)
            assert late[-1].name == "error"
            assert late[-1].data["code"] == "interrupted"
            messages = await history(other, "s")
            assert [m["status"] for m in messages] == ["done", "interrupted", "done", "done"]
            assert messages[3]["content"] == taken["assistant"]["content"]
            assert (await answer(client, "s", "third"))["user"]["seq"] == 5


def test_several_workers_need_servers(folder: Path) -> None:
    for groups in ({}, {"store": {"url": "mongodb://127.0.0.1:1/x"}}):
        refused = strata("serve", folder=folder, **groups, server={"workers": 2})
        assert refused.returncode == 1
        assert "server.workers" in refused.stderr
        assert "mongodb://" in refused.stderr


def test_workers_that_cannot_start_say_so_and_end(folder: Path) -> None:
    refused = strata(
        "serve", folder=folder, store={"url": "mongodb://127.0.0.1:1/x", "timeout": "300ms"},
        index={"url": "none"}, server={"workers": 2, "port": 0},
    )  # fmt: skip
    assert refused.returncode == 1
    assert "store.url" in refused.stderr
