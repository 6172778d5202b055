"""`POST /v1/sessions/{id}/turns` and `GET /v1/turns/{id}`, as docs/contract.md has them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from system.process import Model
from system.streams import parse_all, text_of

from api.conftest import CANARY
from api.shapes import (
    MORE_OF_DONE,
    assert_message,
    assert_problem,
    assert_receipt,
    assert_turn,
    history,
    same_problem,
    say,
)


def post(client: httpx.Client, session: str, accept: str | None = None, **body: Any) -> Any:
    headers = {} if accept is None else {"Accept": accept}
    body = {"message": f"hello {CANARY}", **body}
    return client.post(f"/v1/sessions/{session}/turns", json=body, headers=headers)


def test_a_streamed_turn_has_the_events_of_the_contract(client: httpx.Client, session: str) -> None:
    response = post(client, session, stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    events = parse_all(response.text)
    tokens = [e for e in events if e.name == "token"]
    assert [e.name for e in events] == ["accepted", "context", *["token"] * len(tokens), "done"]
    accepted, receipt, done = events[0].data, events[1].data, events[-1].data
    assert set(accepted) == {"turn_id", "session_id", "seq"}
    assert accepted["session_id"] == session
    assert accepted["seq"] == 1
    assert_receipt(receipt)
    assert all(set(e.data) == {"text"} for e in tokens)
    assert set(done) == {"turn_id", "message_id", "finish_reason", "usage"} | MORE_OF_DONE
    assert set(done["usage"]) == {"prompt_tokens", "completion_tokens", "cached_tokens"}
    assert done["turn_id"] == accepted["turn_id"]
    turn = client.get(f"/v1/turns/{accepted['turn_id']}").json()
    assert_turn(turn, status="done", attempt=1, error=None, finish_reason="stop")
    assert turn["assistant"]["id"] == done["message_id"]
    assert turn["assistant"]["content"] == text_of(events)
    assert turn["receipt"] == receipt
    assert turn["usage"] == done["usage"]


def test_a_turn_in_json_is_the_turn(client: httpx.Client, session: str) -> None:
    turn = say(client, session, f"hello {CANARY}")
    assert_turn(turn, session_id=session, status="done", attempt=1, finish_reason="stop")
    assert_message(turn["user"], content=f"hello {CANARY}", seq=1, client_id=None, speaker=None)
    assert_message(turn["assistant"], content=f"You said: hello {CANARY}", seq=2, status="done")
    assert turn["user"]["tokens"] > 0
    assert client.get(f"/v1/turns/{turn['turn_id']}").json() == turn
    assert history(client, session)["messages"] == [turn["user"], turn["assistant"]]


@pytest.mark.parametrize(
    ("accept", "stream", "expected"),
    [
        (None, None, "text/event-stream"),
        ("*/*", None, "text/event-stream"),
        ("text/event-stream", None, "text/event-stream"),
        ("text/event-stream, application/json", None, "text/event-stream"),
        ("application/json, text/event-stream;q=0.5", None, "text/event-stream"),
        ("application/json", None, "application/json"),
        ("application/json;charset=utf-8", None, "application/json"),
        ("Application/JSON", None, "application/json"),
        ("text/html", None, None),
        ("image/png, text/html;q=0.8", None, None),
        ("application/json", True, "text/event-stream"),
        ("text/html", True, "text/event-stream"),
        ("text/event-stream", False, "application/json"),
        ("text/html", False, "application/json"),
        (None, False, "application/json"),
    ],
)
def test_stream_or_json_is_negotiated(
    client: httpx.Client,
    session: str,
    accept: str | None,
    stream: bool | None,
    expected: str | None,
) -> None:
    """docs/contract.md: body `stream` wins; else SSE when named or Accept absent or */*; JSON when
    only that is; else 406."""
    if accept is None:
        client.headers.pop("accept")
    body = {} if stream is None else {"stream": stream}
    response = post(client, session, accept, **body)
    if expected is None:
        assert_problem(response, 406, "not_acceptable")
        assert client.get(f"/v1/sessions/{session}").status_code == 404, "nothing was stored"
    else:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(expected)


@pytest.mark.parametrize("memory", [False, "read"])
def test_a_stateless_turn_has_null_ids_and_stores_nothing(
    client: httpx.Client, session: str, memory: bool | str
) -> None:
    say(client, session, f"the password is {CANARY}")
    turn = say(client, session, "what is it?", memory=memory)
    assert turn["turn_id"] is None
    assert turn["user"]["id"] is turn["assistant"]["id"] is None
    assert turn["user"]["content"] == "what is it?"
    assert turn["assistant"]["content"] == "You said: what is it?"
    assert turn["status"] == turn["assistant"]["status"] == "done"
    assert turn["user"]["tokens"] == 4
    assert turn["assistant"]["tokens"] > 0
    assert_receipt(turn["receipt"])
    assert turn["receipt"]["layers"]["window"]["messages"] == (2 if memory else 0)
    assert len(history(client, session)["messages"]) == 2
    events = parse_all(post(client, session, stream=True, memory=memory).text)
    assert [e.name for e in events][:2] == ["context", "token"]
    assert events[-1].data["message_id"] is None


def test_metadata_comes_back_with_the_turn(client: httpx.Client, session: str) -> None:
    metadata = {"n": 1, "deep": {"list": [1.5, None, True, "é"]}, "big": 2**60, "": "empty"}
    turn = say(client, session, "hi", metadata=metadata)
    assert turn["metadata"] == metadata
    assert client.get(f"/v1/turns/{turn['turn_id']}").json()["metadata"] == metadata


@pytest.mark.parametrize("recall", ["user", "session", "none"])
def test_recall_can_be_narrowed(client: httpx.Client, session: str, recall: str) -> None:
    from api.shapes import indexed, record

    record(client, f"{session}-old", f"Grandmother keeps {CANARY} marmalade in the blue cupboard")
    record(client, session, "Let us talk about the sea", *[f"wave {n} " * 300 for n in range(12)])
    indexed(client, f"{session}-old")
    indexed(client, session)
    turn = say(client, session, "Where is the marmalade of grandmother?", recall=recall)
    found = {item["session_id"] for item in turn["receipt"]["layers"]["recall"]["items"]}
    assert (f"{session}-old" in found) is (recall == "user")
    if recall == "none":
        assert found == set()
    if recall == "session":
        assert found <= {session}


def test_system_and_question_over_the_budget_are_422_with_the_numbers(
    client: httpx.Client, model: Model, session: str
) -> None:
    response = post(client, session, message="word " * 9000)
    problem = assert_problem(response, 422, "budget_exceeded")
    assert problem["budget_tokens"] == 8000
    assert problem["needed_tokens"] > 9000
    half = "word " * 5000
    assert_problem(post(client, session, message=half, system=half), 422, "budget_exceeded")
    assert_problem(post(client, session, message=half * 2, memory=False), 422, "budget_exceeded")
    assert client.get(f"/v1/sessions/{session}").status_code == 404
    assert model.requests() == []


def test_a_long_question_that_fits_is_sent_whole(
    client: httpx.Client, model: Model, session: str
) -> None:
    text = "word " * 7000
    say(client, session, text)
    assert model.requests()[0]["messages"][-1]["content"] == text


def test_the_titles_are_the_first_characters_of_the_first_message(
    client: httpx.Client, session: str
) -> None:
    say(client, session, f"  A {CANARY} is\na small   fruit that looks like an orange " + "x" * 100)
    title = client.get(f"/v1/sessions/{session}").json()["title"]
    assert len(title) <= 60
    assert title.startswith(f"A {CANARY} is a small fruit")


def test_an_unknown_turn_is_404(client: httpx.Client, session: str) -> None:
    turn = say(client, session, "hi")
    unknown = client.get("/v1/turns/nothing")
    assert_problem(unknown, 404, "not_found")
    for turn_id in (
        f"{turn['turn_id']}x",
        turn["turn_id"][:-1] + "9",
        turn["user"]["id"],
        "a" * 2000,
        "%00",
        "1%0a",
    ):
        assert same_problem(client.get(f"/v1/turns/{turn_id}"), unknown), turn_id
    assert_problem(client.get("/v1/turns/..%2f..%2fetc"), 404, "not_found")


def test_options_have_their_ranges(client: httpx.Client, session: str) -> None:
    for options in (
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"stop": "END"},
        {"stop": ["a"] * 5},
        {"stop": [1]},
        {"unknown": 1},
        [],
        None,
        "x",
    ):
        assert_problem(post(client, session, options=options), 400, "invalid_request")


def test_the_answer_limit_of_the_request_is_sent(
    client: httpx.Client, model: Model, session: str
) -> None:
    say(client, session, "hi", options={"max_tokens": 5})
    (request,) = model.requests()
    sent = request["options"]
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 5
