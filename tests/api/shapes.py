"""The shapes of docs/contract.md, key by key, and short ways to make requests."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import httpx
from waiting import wait_for

MESSAGE = {
    "id", "client_id", "seq", "role", "content", "speaker", "status", "tokens", "created_at",
    "recorded_at", "turn_id",
}  # fmt: skip
TURN = {
    "turn_id", "session_id", "status", "attempt", "user", "assistant", "receipt", "usage",
    "finish_reason", "error",
}  # fmt: skip
SESSION = {
    "session_id", "title", "created_at", "updated_at", "expires_at", "messages", "summary",
    "lexical_through", "dense_through", "facts_through", "metadata",
}  # fmt: skip
RECEIPT = {
    "budget_tokens", "used_tokens", "estimated", "layers", "dropped", "degraded", "prefix_hash",
    "stable_prefix_tokens",
}  # fmt: skip
LAYERS = {
    "system": {"tokens"},
    "facts": {"tokens"},
    "summary": {"tokens", "version", "covers_through", "retired"},
    "window": {"tokens", "messages", "first_seq", "last_seq"},
    "recall": {"tokens", "items"},
    "question": {"tokens"},
}
RECALL_ITEM = {"message_id", "session_id", "seq", "score", "dense_rank", "lexical_rank"}
MEMORY = {
    "message_id", "session_id", "seq", "role", "content", "created_at", "score", "dense_rank",
    "lexical_rank",
}  # fmt: skip
PROBLEM = {"type", "title", "status", "detail", "code", "request_id"}
# Not in docs/contract.md's list; told besides.
MORE_OF_A_TURN = {"metadata", "model"}
MORE_OF_DONE = {"model"}
STATUSES = {"running", "done", "partial", "interrupted", "failed", "forgotten"}
_TIME = re.compile(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)\Z")


def moment(text: str) -> datetime:
    """A time of the API, which must be UTC and say so."""
    assert _TIME.match(text), text
    return datetime.fromisoformat(text).astimezone(UTC)


def assert_message(message: Any, **expected: Any) -> None:
    assert set(message) == MESSAGE
    assert message["status"] in STATUSES
    assert message["role"] in ("user", "assistant")
    assert isinstance(message["seq"], int)
    assert isinstance(message["tokens"], int)
    moment(message["created_at"])
    moment(message["recorded_at"])
    assert {name: message[name] for name in expected} == expected


def assert_receipt(receipt: Any) -> None:
    assert set(receipt) == RECEIPT
    assert {name: set(layer) for name, layer in receipt["layers"].items()} == LAYERS
    for item in receipt["layers"]["recall"]["items"]:
        assert set(item) == RECALL_ITEM
    for drop in receipt["dropped"]:
        assert set(drop) == {"layer", "reason", "count"}
    used = sum(layer["tokens"] for layer in receipt["layers"].values())
    assert used == receipt["used_tokens"] <= receipt["budget_tokens"]
    assert receipt["estimated"] is False
    assert re.fullmatch(r"[0-9a-f]{64}", receipt["prefix_hash"])
    assert isinstance(receipt["degraded"], list)
    assert receipt["stable_prefix_tokens"] >= 0


def assert_turn(turn: Any, **expected: Any) -> None:
    assert set(turn) == TURN | MORE_OF_A_TURN
    assert_message(turn["user"], role="user", status="done", turn_id=turn["turn_id"])
    assert_message(turn["assistant"], role="assistant", turn_id=turn["turn_id"])
    assert turn["assistant"]["seq"] == turn["user"]["seq"] + 1
    assert_receipt(turn["receipt"])
    assert {name: turn[name] for name in expected} == expected


def assert_session(session: Any, **expected: Any) -> None:
    assert set(session) == SESSION
    assert set(session["summary"]) == {"text", "version", "covers_through"}
    assert moment(session["created_at"]) <= moment(session["updated_at"])
    assert {name: session[name] for name in expected} == expected


def assert_problem(response: httpx.Response, status: int, code: str | None = None) -> Any:
    """RFC 9457, with Strata's members."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) >= PROBLEM, problem
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    if code is not None:
        assert problem["code"] == code
    return problem


def same_problem(one: httpx.Response, another: httpx.Response) -> bool:
    """Whether two problems are the same but for their request ids."""
    texts = [r.text.replace(r.headers["x-request-id"], "") for r in (one, another)]
    names = [{k: v for k, v in r.headers.items() if k not in ("date", "x-request-id")}
             for r in (one, another)]  # fmt: skip
    return (one.status_code, texts[0], names[0]) == (another.status_code, texts[1], names[1])


def say(client: httpx.Client, session: str, message: str, **more: Any) -> Any:
    """One turn as JSON, which must succeed."""
    response = client.post(
        f"/v1/sessions/{session}/turns", json={"message": message, "stream": False, **more}
    )
    assert response.status_code == 200, response.text
    return response.json()


def record(client: httpx.Client, session: str, *messages: dict[str, Any] | str) -> Any:
    """Recorded messages; a bare text is a user's."""
    body = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    response = client.post(f"/v1/sessions/{session}/messages", json={"messages": body})
    assert response.status_code == 201, response.text
    return response.json()


def history(client: httpx.Client, session: str, **query: Any) -> Any:
    response = client.get(f"/v1/sessions/{session}/messages", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def context(client: httpx.Client, session: str, query: str, **more: Any) -> Any:
    response = client.post(f"/v1/sessions/{session}/context", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return response.json()


def memories(client: httpx.Client, **query: Any) -> Any:
    response = client.get("/v1/memories", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def indexed(client: httpx.Client, session: str) -> None:
    """Return once the session's last message is found by meaning and by words."""
    last = history(client, session)["messages"][-1]

    def found() -> bool:
        items = memories(client, q=last["content"][:300], session_id=session)["memories"]
        ranks = [(i["dense_rank"], i["lexical_rank"]) for i in items if i["seq"] == last["seq"]]
        return bool(ranks) and None not in ranks[0]

    wait_for(found, what=f"finding {last['content'][:300]!r}")
