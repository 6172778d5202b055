"""R7: the same Idempotency-Key is one turn, one user message, one answer, whatever happens."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import eventually

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import (
    Event,
    answer,
    ask,
    asked,
    asking,
    history,
    named,
    parse_all,
    read_events,
    said,
    text_of,
)  # fmt: skip

Groups = dict[str, dict[str, Any]]
DUPLICATES = 20
QUESTION = "What is the harbour called?"


async def questions(client: httpx.AsyncClient, session: str) -> list[str]:
    return [m["content"] for m in await history(client, session) if m["role"] == "user"]


async def until_answered(client: httpx.AsyncClient, step: str) -> httpx.Response:
    """As a client retries: for as long as it is told that its turn still runs."""

    async def once() -> httpx.Response | None:
        response = await retry(client, step)
        if response.status_code != 409:
            return response
        assert_running(response)
        return None

    found: httpx.Response = await eventually(once)
    return found


def assert_running(response: httpx.Response) -> None:
    assert response.status_code == 409, response.text
    assert response.json()["code"] == "turn_running"
    assert response.json()["turn_id"]
    assert int(response.headers["retry-after"]) >= 1


async def assert_one_turn(clients: list[httpx.AsyncClient], model: Model, session: str) -> None:
    """Many duplicates at once, half of them as streams, over all `clients`."""
    model.mode("slow", delay=0.02, text="It is called Porto Vecchio, says the chart.")
    responses = await asyncio.gather(
        *(
            asked(clients[n % len(clients)], session, QUESTION, key="one", stream=n % 4 < 2)
            for n in range(DUPLICATES)
        )
    )
    good = [r for r in responses if r.status_code == 200]
    for response in responses:
        if response.status_code != 200:
            assert_running(response)
    assert {said(r) for r in good} == {"It is called Porto Vecchio, says the chart."}
    replayed = [r for r in good if r.headers.get("idempotency-replayed") == "true"]
    assert len(replayed) == len(good) - 1, "one of them is the first"
    assert len(model.requests()) == 1
    messages = await history(clients[0], session)
    assert [(m["role"], m["status"]) for m in messages] == [("user", "done"), ("assistant", "done")]
    for client in clients:
        later = await asked(client, session, QUESTION, key="one")
        assert later.headers["idempotency-replayed"] == "true"
        assert said(later) == said(good[0])
    assert len(model.requests()) == 1


async def test_parallel_duplicates_are_one_turn(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    await assert_one_turn([client], model, session)


async def test_duplicates_in_several_processes_are_one_turn(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], model: Model, session: str
) -> None:
    await assert_one_turn(list(both), model, session)


# --- replay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first_streamed", [False, True])
@pytest.mark.parametrize("then_streamed", [False, True])
async def test_an_answer_is_replayed_in_the_form_that_is_asked_for(
    client: httpx.AsyncClient, model: Model, session: str, first_streamed: bool,
    then_streamed: bool,
) -> None:  # fmt: skip
    first = await asked(client, session, QUESTION, key="r", stream=first_streamed)
    assert "idempotency-replayed" not in first.headers
    again = await asked(client, session, QUESTION, key="r", stream=then_streamed)
    assert again.headers["idempotency-replayed"] == "true"
    assert said(again) == said(first)
    assert len(model.requests()) == 1
    turn_id = (await history(client, session))[0]["turn_id"]
    turn = (await client.get(f"/v1/turns/{turn_id}")).json()
    for response, streamed in ((first, first_streamed), (again, then_streamed)):
        if not streamed:
            assert response.json() == turn
            continue
        events = parse_all(response.text)
        told = [(e.name, e.id, e.data) for e in events if e.name != "token"]
        run = f"{turn_id}.1"
        assert told == [
            ("accepted", f"{run}:a", {"turn_id": turn_id, "session_id": session, "seq": 1}),
            ("context", f"{run}:c", turn["receipt"]),
            ("done", f"{run}:e", {
                "turn_id": turn_id, "message_id": turn["assistant"]["id"],
                "finish_reason": "stop", "usage": turn["usage"], "model": turn["model"],
            }),
        ]  # fmt: skip
        *_, last = named(events, "token")
        assert last.id == f"{run}:t{len(said(first))}"
        assert [e.name for e in events[:3]] == ["accepted", "context", "token"]


async def test_a_key_with_another_request_is_refused(
    client: httpx.AsyncClient, plain: Service, model: Model, session: str
) -> None:
    await asked(client, session, QUESTION, key="mine")
    for other in (
        {"message": "another"}, {"recall": "none"}, {"system": "Be brief."},
        {"metadata": {"a": 1}}, {"options": {"max_tokens": 5}},
    ):  # fmt: skip
        refused = await asked(client, session, **{"message": QUESTION, "key": "mine", **other})
        assert refused.status_code == 422
        assert refused.json()["code"] == "idempotency_key_reused"
    elsewhere = await asked(client, f"{session}-2", QUESTION, key="mine")
    assert elsewhere.status_code == 422, "another session is another request"
    assert len(model.requests()) == 1
    async with plain.client(f"other-of-{session}") as other_user:
        theirs = await asked(other_user, session, "something else", key="mine")
        assert theirs.status_code == 200
        assert "idempotency-replayed" not in theirs.headers


async def test_a_cancelled_answer_is_replayed_as_far_as_it_came(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("hang_after", chunks=3, text="one two three four")
    first = asyncio.create_task(asked(client, session, QUESTION, key="c"))

    async def streaming() -> Any:
        return [r for r in model.requests() if r["sent"] == "one two three"]

    await eventually(streaming)
    turn_id = (await history(client, session))[0]["turn_id"]
    assert (await client.post(f"/v1/turns/{turn_id}/cancel")).status_code == 202
    assert (await first).json()["status"] == "partial"
    for streamed in (False, True):
        again = await asked(client, session, QUESTION, key="c", stream=streamed)
        assert again.headers["idempotency-replayed"] == "true"
        assert said(again) == said(await first)
    assert len(model.requests()) == 1


# --- a turn that failed ----------------------------------------------------------------------

FAILURES: list[dict[str, Any]] = [
    {"mode": "500"},
    {"mode": "reset", "chunks": 3, "text": "half an answer that breaks"},
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda f: f["mode"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failed_turn_runs_again_on_retry(
    client: httpx.AsyncClient, model: Model, session: str, failure: dict[str, Any], streamed: bool
) -> None:
    await answer(client, session, "We are at sea.")
    model.mode(**failure)
    first = await asked(client, session, QUESTION, key="f", stream=streamed)
    if streamed:
        accepted, *_, error = parse_all(first.text)
        turn_id = accepted.data["turn_id"]
        assert (error.data["code"], error.data["retryable"]) == ("model_error", True)
    else:
        assert first.status_code == 502
        turn_id = first.json()["turn_id"]
    question = (await history(client, session))[2]
    model.forget()
    again = await asked(client, session, QUESTION, key="f")
    assert again.status_code == 200, again.text
    assert "idempotency-replayed" not in again.headers
    turn = again.json()
    assert (turn["turn_id"], turn["attempt"], turn["status"]) == (turn_id, 2, "done")
    assert (turn["error"], turn["user"]) == (None, question)
    (request,) = model.requests()
    assert [m["content"] for m in request["messages"]].count(QUESTION) == 1
    assert "half an answer" not in str(request["messages"])
    assert await questions(client, session) == ["We are at sea.", QUESTION]
    assert [m["status"] for m in await history(client, session)] == ["done"] * 4
    assert said(await asked(client, session, QUESTION, key="f")) == said(again)
    assert len(model.requests()) == 1


async def test_a_turn_that_the_session_has_left_behind_is_409(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("500")
    first = await asked(client, session, QUESTION, key="s")
    model.forget()
    await answer(client, session, "Never mind.")
    late = await asked(client, session, QUESTION, key="s")
    assert late.status_code == 409
    assert late.json()["code"] == "turn_superseded"
    assert late.json()["turn_id"] == first.json()["turn_id"]
    assert len(model.requests()) == 1
    assert await questions(client, session) == [QUESTION, "Never mind."]


async def test_after_a_retry_the_new_answer_is_recalled_and_the_old_one_is_not(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    async def recalled(query: str) -> list[str]:
        found = await client.get("/v1/memories", params={"q": query, "role": "assistant"})
        return [item["content"] for item in found.json()["memories"] if query in item["content"]]

    model.mode("reset", chunks=2, text="Zanzibar perhaps, or not")
    await asked(client, session, QUESTION, key="x")
    await eventually(lambda: recalled("Zanzibar"))
    model.forget()
    model.mode(text="It is Valparaiso.")
    await asked(client, session, QUESTION, key="x")
    await eventually(lambda: recalled("Valparaiso"))
    assert await recalled("Zanzibar") == []


# --- kill -9 at each step ----------------------------------------------------------------------

STEPS = ["before accept", "before the first token", "mid-stream", "after done"]


async def kill_at(step: str, service: Service, model: Model) -> None:
    """The service dies at this step of the question; its session and its key are the step."""
    busy = None
    async with service.client() as client:
        if step == "before accept":
            model.mode("hang")
            busy = asyncio.create_task(broken(client, step, "keep it busy"))
            await eventually(model.requests)
        elif step == "before the first token":
            model.mode("hang")
        elif step == "mid-stream":
            model.mode("hang_after", chunks=3, text="one two three four")
        dying = asyncio.create_task(broken(client, step, QUESTION))

        async def reached() -> Any:
            requests = model.requests()
            return requests and (step != "mid-stream" or requests[-1]["sent"] == "one two three")

        await eventually(reached)
        if busy is not None:  # the question waits for its session; nothing shows that it does
            await client.get("/health/live")
            assert len(model.requests()) == 1
        if step == "after done":
            assert (await dying)[-1].name == "done"
        service.kill()
        await asyncio.gather(dying, *([busy] if busy else []))


async def broken(client: httpx.AsyncClient, step: str, message: str) -> list[Event]:
    """The events of a turn whose service may die."""
    found: list[Event] = []
    url, body = f"/v1/sessions/{session_of(step)}/turns", {"message": message, "stream": True}
    with suppress(httpx.HTTPError):
        async with client.stream(
            "POST", url, json=body, headers={"Idempotency-Key": key_of(step, message)}
        ) as response:
            assert response.status_code == 200
            async for event in read_events(response):
                found.append(event)
    return found


async def retry(client: httpx.AsyncClient, step: str) -> httpx.Response:
    return await asked(client, session_of(step), QUESTION, key=key_of(step, QUESTION))


def key_of(step: str, message: str) -> str:
    return f"{message}-{step}".replace(" ", "-")


def session_of(step: str) -> str:
    return step.replace(" ", "-")


def calls_for_the_question(model: Model) -> int:
    return sum(r["messages"][-1]["content"].endswith(QUESTION) for r in model.requests())


def expected_calls(step: str) -> int:
    """Model calls for the question: two only when the kill fell between the call and `done`."""
    return {"before accept": 1, "after done": 1}.get(step, 2)


async def test_a_retry_after_kill_9_is_the_same_turn(model: Model, folder: Path) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        for step in STEPS:
            model.forget()
            await kill_at(step, service, model)
            service.start()
            model.mode()
            async with service.client() as client:
                response = await retry(client, step)  # no 409 after a restart: R6
                assert response.status_code == 200, (step, response.text)
                assert (await questions(client, session_of(step))).count(QUESTION) == 1
            replayed = response.headers.get("idempotency-replayed") == "true"
            assert replayed == (step == "after done")
            assert response.json()["attempt"] == expected_calls(step)
            assert calls_for_the_question(model) == expected_calls(step)


async def test_a_retry_in_another_process_waits_for_the_lease_and_runs_again(
    model: Model, folder: Path, shared: Groups
) -> None:
    shared = {**shared, "session": {"lease": "1s"}}
    with (
        serving(folder / "1", fake=model, **shared) as one,
        serving(folder / "2", fake=model, **shared) as two,
    ):
        async with two.client() as other:
            for step in STEPS:
                model.forget()
                if not one.child.running():
                    one.start()
                await kill_at(step, one, model)
                model.mode()
                first = await retry(other, step)
                if step in ("before the first token", "mid-stream"):
                    assert_running(first)
                replayed = first.headers.get("idempotency-replayed") == "true"
                assert replayed == (step == "after done")
                response = await until_answered(other, step)
                assert response.status_code == 200, (step, response.text)
                assert response.json()["attempt"] == expected_calls(step)
                assert (await questions(other, session_of(step))).count(QUESTION) == 1
                assert calls_for_the_question(model) == expected_calls(step)


async def test_retries_after_kills_at_any_moment_ask_once(
    model: Model, folder: Path, rng: random.Random
) -> None:
    """The same key again and again while the service dies under it, until it is answered."""
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"partial_flush": "20ms"}
    ) as service:
        model.mode("slow", delay=0.02, text=" ".join(f"w{n}" for n in range(20)))
        done = False
        for _ in range(3):
            async with service.client() as client:
                dying = asyncio.create_task(broken(client, "s", QUESTION))
                await asyncio.sleep(rng.uniform(0, 0.7))
                service.kill()
                done = any(event.name == "done" for event in await dying)
            service.start()
            calls = len(model.requests())
            if done:
                break
        async with service.client() as client:
            response = await retry(client, "s")
            assert said(response) == " ".join(f"w{n}" for n in range(20))
            assert len(await history(client, "s")) == 2
        if done:
            assert len(model.requests()) == calls


# --- what is not recorded ---------------------------------------------------------------------


async def test_what_failed_before_it_was_accepted_is_not_recorded(
    model: Model, folder: Path
) -> None:
    with serving(folder, fake=model, embedding=BY_WORDS, session={"wait": "0s"}) as service:
        async with service.client() as client:
            await answer(client, "s", "We are at sea.")
            model.mode("hang")
            async with asking(client, "s", "never answered") as events:
                accepted = await anext(events)
                busy = await asked(client, "s", QUESTION, key="k")
                assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
                await client.post(f"/v1/turns/{accepted.data['turn_id']}/cancel")
                assert [e async for e in events][-1].name == "done"
            model.forget()
            service.limit_files(1)
            away = await asked(client, "s", "another question", key="k")
            assert (away.status_code, away.json()["code"]) == (503, "store_unavailable")
            service.limit_files(None)
            refused = await asked(client, "s", " ", key="k")
            assert refused.status_code == 400
            assert model.requests() == []
            new = await asked(client, "s", "a third question", key="k")
            assert new.status_code == 200, new.text
            assert "idempotency-replayed" not in new.headers
            assert await questions(client, "s") == [
                "We are at sea.", "never answered", "a third question",
            ]  # fmt: skip
            assert text_of(await ask(client, "s", "and on")) != ""
