"""R10: whatever the model does, one error event, the user's message kept, the next turn works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from waiting import quickly

from system.conftest import BY_WORDS
from system.process import Model, Service, serving
from system.streams import Event, answer, ask, history, text_of

SHORT_DEADLINES = {"first_token_timeout": "1200ms", "gap_timeout": "1200ms", "turn_timeout": "2s"}
CANARY = "zanzibar-canary"


class Fault(NamedTuple):
    mode: dict[str, Any]
    code: str
    retryable: bool
    text: str = ""
    retry_after: float | None = None


FAULTS = {
    "429": Fault({"mode": "429", "delay": 7}, "model_error", True, retry_after=7),
    "500": Fault({"mode": "500"}, "model_error", True),
    "503": Fault({"mode": "503"}, "model_error", True),
    "400": Fault({"mode": "400"}, "model_error", False),
    "401": Fault({"mode": "401"}, "model_error", False),
    "hang": Fault({"mode": "hang"}, "model_timeout", True),
    "hang_after": Fault({"mode": "hang_after", "chunks": 2}, "model_timeout", True, "You said:"),
    "endless": Fault({"mode": "slow", "delay": 0.3, "text": "so " * 50}, "model_timeout", True),
    "reset": Fault({"mode": "reset"}, "model_error", True),
    "reset_after": Fault({"mode": "reset", "chunks": 2}, "model_error", True, "You said:"),
    "half_a_stream": Fault({"mode": "cut", "chunks": 2}, "model_error", True, "You said:"),
    "nothing": Fault({"mode": "cut"}, "model_error", True),
    "bad_json": Fault({"mode": "bad_json", "text": "One two"}, "model_error", True, "One two"),
}


@pytest.fixture(scope="module")
def plain(model_process: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its model has not long to answer."""
    settings = {"model": {**SHORT_DEADLINES, "max_retries": 0}, "embedding": BY_WORDS}
    folder = tmp_path_factory.mktemp("hasty")
    with serving(folder, fake=model_process, **settings) as service:
        yield service


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, model: Model) -> Fault:
    found = FAULTS[request.param]
    model.mode(**found.mode)
    return found


def assert_no_inner_text(text: str, log: Path) -> None:
    assert "fault:" not in text
    assert CANARY not in text
    assert "Traceback" not in text
    assert "openai" not in text.lower()
    assert CANARY not in log.read_text()


async def test_a_failing_model_ends_the_stream_with_one_error(
    client: httpx.AsyncClient, plain: Service, model: Model, session: str, fault: Fault
) -> None:
    """R10, streamed."""
    with quickly(3):
        events = await ask(client, session, f"what is {CANARY}?")
    assert [e.name for e in events[:2]] == ["accepted", "context"]
    assert [e.name for e in events if e.name in ("done", "error")] == ["error"]
    error = events[-1]
    assert error.id.endswith(".1:e")
    assert error.data["code"] == fault.code
    assert error.data["retryable"] is fault.retryable
    assert error.data.get("retry_after_s") == fault.retry_after
    assert set(error.data) <= {"code", "message", "retryable", "retry_after_s"}
    assert_no_inner_text(str(error.data), plain.log)
    assert text_of(events).startswith(fault.text)
    await assert_kept_and_goes_on(client, model, session, events[0].data["turn_id"], fault, events)


async def assert_kept_and_goes_on(
    client: httpx.AsyncClient, model: Model, session: str, turn_id: str, fault: Fault,
    events: list[Event],
) -> None:  # fmt: skip
    user, reply = await history(client, session)
    assert user["content"] == f"what is {CANARY}?"
    assert user["status"] == "done"
    assert reply["role"] == "assistant"
    assert (
        reply["content"] == text_of(events) if events else reply["content"].startswith(fault.text)
    )
    assert reply["status"] == ("partial" if reply["content"] else "failed")
    turn = (await client.get(f"/v1/turns/{turn_id}")).json()
    assert turn["status"] == "failed"
    assert turn["error"]["code"] == fault.code
    assert turn["error"]["retryable"] is fault.retryable
    model.forget()
    after = await answer(client, session, "and now?")
    assert after["assistant"]["content"].startswith("You said:")
    prompt = " ".join(m["content"] for m in model.requests()[0]["messages"])
    assert CANARY in prompt, "the failed turn's question is part of the conversation"


async def test_a_failing_model_is_502_or_504_in_json(
    client: httpx.AsyncClient, plain: Service, model: Model, session: str, fault: Fault
) -> None:
    """R10, docs/contract.md: 502 `model_error` or 504 `model_timeout`, turn_id and retryable."""
    response = await client.post(
        f"/v1/sessions/{session}/turns", json={"message": f"what is {CANARY}?", "stream": False}
    )
    assert response.status_code == {"model_error": 502, "model_timeout": 504}[fault.code]
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["code"] == fault.code
    assert problem["retryable"] is fault.retryable
    if fault.retry_after:
        assert response.headers["retry-after"] == f"{fault.retry_after:g}"
    assert_no_inner_text(response.text, plain.log)
    await assert_kept_and_goes_on(client, model, session, problem["turn_id"], fault, [])


async def test_a_stateless_call_fails_in_the_same_way(
    client: httpx.AsyncClient, model: Model, session: str, fault: Fault
) -> None:
    if fault.mode["mode"] not in ("500", "hang_after", "cut"):
        return  # one of each kind is enough here
    events = await ask(client, session, "hello?", memory=False)
    assert events[-1].name == "error"
    assert events[-1].data["code"] == fault.code
    response = await client.post(
        f"/v1/sessions/{session}/turns",
        json={"message": "hello?", "stream": False, "memory": False},
    )
    assert response.status_code in (502, 504)
    assert response.json()["turn_id"] is None
    assert (await client.get(f"/v1/sessions/{session}")).status_code == 404


@pytest.mark.parametrize("mode", ["no_done", "empty", "ok"])
async def test_what_a_model_may_do_is_no_failure(
    client: httpx.AsyncClient, model: Model, session: str, mode: str
) -> None:
    text = "I'm sorry, but I can't help with that."
    model.mode(mode, text=text)
    events = await ask(client, session, "hello?")
    assert events[-1].name == "done"
    assert events[-1].data["finish_reason"] == "stop"
    _, reply = await history(client, session)
    assert reply["status"] == "done"
    assert reply["content"] == text_of(events) == ("" if mode == "empty" else text)
    model.forget()
    assert (await ask(client, session, "and now?"))[-1].name == "done"
    roles = [m["role"] for m in model.requests()[0]["messages"]]
    assert roles == (
        ["system", "user"] if mode == "empty" else ["system", "user", "assistant", "user"]
    )


async def test_it_is_tried_again_only_before_the_first_token(model: Model, folder: Path) -> None:
    """`model.max_retries`: 1, before the first token only; the one place that retries."""
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        async with service.client() as client:
            for mode in ("500", "reset"):
                model.forget()
                model.mode(mode, times=1)
                assert (await ask(client, "s", "hello"))[-1].name == "done"
                assert len(model.requests()) == 2
                model.mode(mode)
                assert (await ask(client, "s", "hello"))[-1].name == "error"
                assert len(model.requests()) == 4
            model.forget()
            model.mode("reset", chunks=1, times=1)
            events = await ask(client, "s", "hello")
            assert events[-1].data["code"] == "model_error"
            assert text_of(events) == "You"
            assert len(model.requests()) == 1


async def test_an_unreachable_model_is_an_error_and_said_by_ready(
    folder: Path, model: Model
) -> None:
    nowhere = {"base_url": "http://127.0.0.1:9/v1"}
    with serving(folder, embedding=BY_WORDS, model=nowhere) as service:
        async with service.client() as client:
            events = await ask(client, "s", "hello")
            assert events[-1].data["code"] == "model_error"
            assert events[-1].data["retryable"] is True
            ready = await client.get("/health/ready")
            assert ready.status_code == 200
            assert ready.json()["model"]["status"] == "down"
            assert ready.json()["degraded"] is True
