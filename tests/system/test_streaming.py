"""Turns over real sockets: incremental, one after the other, with the model's own numbers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
from waiting import assert_quick, eventually, quickly

from system.conftest import BY_WORDS
from system.process import Model, serving
from system.streams import answer, ask, asking, history, named, text_of


async def test_the_first_token_arrives_before_the_last_is_made(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    for pieces in (1, 2, 5):
        model.mode("hang_after", chunks=pieces, text="one two three four five six")
        async with asking(client, f"{session}-{pieces}", "count") as events:
            found = [(await anext(events)).name for _ in range(2 + pieces)]
        assert found == ["accepted", "context", *["token"] * pieces], "one event for each piece"
        assert model.requests()[-1]["sent"].split()[-1] != "six", "the rest was not made yet"


async def test_accepted_and_context_come_before_the_model_answers(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("hang")
    with quickly(0.6):
        async with asking(client, session, "are you there?") as events:
            names = [(await anext(events)).name for _ in range(2)]
    assert names == ["accepted", "context"]


async def test_events_carry_ids_that_count_code_points(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    model.mode("ok", text="Grüße 👩‍👩‍👧 aus 北京 \u2028 e\u0301!")
    events = await ask(client, session, "hi")
    assert [e.name for e in events[:2]] == ["accepted", "context"]
    assert [e.name for e in events[2:]] == ["token"] * (len(events) - 3) + ["done"]
    turn_id = events[0].data["turn_id"]
    run = f"{turn_id}.1"
    assert [e.id for e in events[:2]] == [f"{run}:a", f"{run}:c"]
    assert events[-1].id == f"{run}:e"
    length = 0
    for event in named(events, "token"):
        length += len(event.data["text"])
        assert event.id == f"{run}:t{length}"
    stored = (await client.get(f"/v1/turns/{turn_id}")).json()
    assert (
        stored["assistant"]["content"] == text_of(events) == "Grüße 👩‍👩‍👧 aus 北京 \u2028 e\u0301!"
    )


async def test_done_tells_what_the_model_counted(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    events = await ask(client, session, "how much is this?")
    (request,) = model.requests()
    usage = request["usage"]
    assert events[-1].data["usage"] == {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }
    assert events[-1].data["finish_reason"] == "stop"
    turn = (await client.get(f"/v1/turns/{events[0].data['turn_id']}")).json()
    assert turn["usage"] == events[-1].data["usage"]


async def test_options_and_system_text_reach_the_model(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    options = {"temperature": 0.25, "top_p": 0.5, "max_tokens": 77, "stop": ["END", "FIN"]}
    await answer(client, session, "hello", options=options, system="Speak like a pirate.")
    (request,) = model.requests()
    sent = request["options"]
    assert sent["temperature"] == 0.25
    assert sent["top_p"] == 0.5
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 77
    assert sent["stop"] == ["END", "FIN"]
    assert sent["model"] == "gpt-4.1-mini"
    assert sent["stream_options"] == {"include_usage": True}
    assert "Speak like a pirate." in request["messages"][0]["content"]
    assert [m["role"] for m in request["messages"]] == ["system", "user"]


async def test_without_options_none_are_sent(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    await answer(client, session, "hello")
    (request,) = model.requests()
    assert set(request["options"]) <= {"model", "stream", "stream_options"}


async def test_no_openai_variable_but_the_key_is_read(model: Model, folder: Path) -> None:
    """S6: `model.api_key` falls back to OPENAI_API_KEY; no other OPENAI_* variable is read."""
    env = {
        "OPENAI_API_KEY": "sk-from-the-environment",
        "OPENAI_ORG_ID": "org-canary",
        "OPENAI_PROJECT_ID": "project-canary",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/elsewhere",
        "OPENAI_API_BASE": "http://127.0.0.1:9/elsewhere",
        "OPENAI_PROXY": "http://127.0.0.1:9",
        "OPENAI_ORGANIZATION": "org-canary",
        "OPENAI_WEBHOOK_SECRET": "secret-canary",
        "OPENAI_CUSTOM_HEADERS": "x-canary: 1",
    }
    with serving(folder, fake=model, embedding=BY_WORDS, env=env) as service:
        async with service.client() as client:
            await answer(client, "s", "hello")
    (request,) = model.requests()
    assert request["headers"]["authorization"] == "Bearer sk-from-the-environment"
    assert "canary" not in str(request["headers"])


async def test_two_turns_of_one_session_go_one_after_the_other(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    """R3, small: the later prompt holds the earlier turn, whole."""
    model.mode("slow", delay=0.05, text="first answer of the model")
    first = asyncio.create_task(ask(client, session, "first question"))
    await eventually(model.requests)
    second = asyncio.create_task(ask(client, session, "second question"))
    events, later = await first, await second
    early = events[-1].at - next(named(later, "accepted")).at
    assert_quick(early, 0.02, what="the second was accepted before the first had ended")
    prompts = [request["messages"] for request in model.requests()]
    assert [m["content"] for m in prompts[1]][1:] == [
        "first question",
        "first answer of the model",
        "second question",
    ]


async def test_a_turn_waits_for_messages_that_are_being_recorded(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    texts = [f"fact number {n} of the list" for n in range(300)]
    body = {"messages": [{"role": "user", "content": text} for text in texts]}
    recording = asyncio.create_task(client.post(f"/v1/sessions/{session}/messages", json=body))
    turn = asyncio.create_task(ask(client, session, "and now?"))
    assert (await recording).status_code == 201
    assert (await turn)[-1].name == "done"
    seqs = [m["seq"] for m in await history(client, session)]
    assert seqs == list(range(1, 303))


async def test_a_stateless_call_stores_nothing(
    client: httpx.AsyncClient, model: Model, session: str
) -> None:
    await answer(client, session, "my cat is called Mimi")
    for memory in (False, "read"):
        events = await ask(client, session, "what is my cat called?", memory=memory)
        names = [event.name for event in events]
        assert names == ["context", *["token"] * (len(names) - 2), "done"]
        assert events[-1].data["message_id"] is None
        assert events[-1].data["turn_id"] is None
        run = events[0].id.removesuffix(":c")
        assert re.fullmatch(r"\S+\.1", run)
        assert all(event.id.startswith(f"{run}:") for event in events)
        prompt = model.requests()[-1]["messages"]
        window = events[0].data["layers"]["window"]["messages"]
        assert window == (2 if memory else 0)
        assert ("my cat is called Mimi" in str(prompt)) is (memory == "read")
    assert len(await history(client, session)) == 2
