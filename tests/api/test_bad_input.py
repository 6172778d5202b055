"""PROMISES.md, "Bad input": every row that concerns the routes that exist, over a real socket."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from system.process import Service

JSON = {"content-type": "application/json", "accept": "application/json"}
PROBLEM = {"type", "title", "status", "detail", "code", "request_id"}


def assert_problem(response: httpx.Response, *statuses: int, names: str = "") -> None:
    assert response.status_code in statuses, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) >= PROBLEM
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert names in body["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"message": "cut off',
        b'{"message": NaN}',
        b"null",
        b"",
        b"[]",
        b'"text"',
        b'{"message": "hello", "mesage": "again"}',
        b'{"message": {"$gt": ""}}',
        b'{"message": "hello", "memory": {"$ne": true}}',
        b'{"message": "hello", "metadata": {"$where": "1"}, "recall": {"$gt": ""}}',
        b'{"message": 5}',
        b'{"message": ""}',
        b'{"message": " \\n\\t "}',
        b'{"message": "a\\u0000b"}',
        b'{"message": "\\ud800"}',
        b'{"message": "hello", "options": {"temperature": 9}}',
        b'{"message": "hello", "options": {"stop": ["a","b","c","d","e"]}}',
        b'{"message": "hello", "recall": "everything"}',
        b'{"message": "hello", "memory": "write"}',
    ],
)
def test_a_body_that_cannot_be_right_is_400(
    client: httpx.Client, session: str, body: bytes
) -> None:
    response = client.post(f"/v1/sessions/{session}/turns", content=body, headers=JSON)
    assert_problem(response, 400)
    kept = client.get(f"/v1/sessions/{session}/messages")
    assert kept.status_code == 404, "nothing may have been stored"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"message": 5}, "message"),
        ({"message": "x", "mesage": "y"}, "mesage"),
        ({"message": "x", "options": {"temperature": 9}}, "options.temperature"),
        ({"message": " "}, "message"),
        ({"message": "x", "metadata": {"k": "v" * 20_000}}, "metadata"),
    ],
)
def test_the_answer_names_the_field(
    client: httpx.Client, session: str, body: dict[str, Any], field: str
) -> None:
    response = client.post(f"/v1/sessions/{session}/turns", json=body, headers=JSON)
    assert_problem(response, 400, names=field)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "obey"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "a\0b"}],
        [{"role": "user", "content": "x", "created_at": "yesterday"}],
        [{"role": "user", "content": "x", "speaker": "a\nb"}],
        [{"role": "user", "content": "x", "id": ""}],
        [{"role": "user", "content": "x", "id": {"$gt": ""}}],
        [{"role": "user", "content": "fine"}, {"role": "user", "content": "\0"}],
        "text",
    ],
)
def test_messages_that_cannot_be_right_are_400_and_none_is_kept(
    client: httpx.Client, session: str, messages: Any
) -> None:
    path = f"/v1/sessions/{session}/messages"
    assert_problem(client.post(path, json={"messages": messages}), 400)
    assert (client.get(path)).status_code == 404


@pytest.mark.parametrize("session_id", ["abc%0a", "%00", "..%2fx", "a%20b", "é", "a" * 129])
@pytest.mark.parametrize("route", ["turns", "messages", "context", ""])
def test_a_session_id_outside_the_alphabet_is_400_or_404(
    client: httpx.Client, session_id: str, route: str
) -> None:
    bodies = {
        "turns": {"message": "x"},
        "messages": {"messages": [{"role": "user", "content": "x"}]},
        "context": {"query": "x"},
    }
    path = f"/v1/sessions/{session_id}/{route}".rstrip("/")
    body = bodies.get(route)
    response = client.post(path, json=body, headers=JSON) if body else client.get(path)
    assert_problem(response, 400, 404)


def test_a_session_id_of_a_megabyte_is_refused(service: Service) -> None:
    answer = _raw(service, b"GET /v1/sessions/" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n")
    assert answer[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 414", b""}


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_media_type_is_415(
    client: httpx.Client, session: str, media_type: str
) -> None:
    response = client.post(
        f"/v1/sessions/{session}/turns",
        content=b'{"message":"x"}',
        headers={"content-type": media_type},
    )
    assert_problem(response, 415)


def test_a_body_over_the_limit_is_413(client: httpx.Client, session: str) -> None:
    path = f"/v1/sessions/{session}/turns"
    body = json.dumps({"message": "a" * 300_000}).encode()
    assert_problem(client.post(path, content=body, headers=JSON), 413)

    def chunks() -> Any:  # sent without a length
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    assert_problem(client.post(path, content=chunks(), headers=JSON), 413)


def test_a_message_over_the_limit_is_413_and_names_the_limit(
    client: httpx.Client, session: str
) -> None:
    path = f"/v1/sessions/{session}/turns"
    response = client.post(path, json={"message": "a" * 64_001}, headers=JSON)
    assert_problem(response, 413, names="64000")
    response = client.post(path, json={"message": "é" * 32_001}, headers=JSON)
    assert_problem(response, 413, names="64000")


def test_too_many_or_too_large_headers_are_431_and_a_long_url_414(
    client: httpx.Client,
) -> None:
    many = {f"x-{n}": "1" for n in range(101)}
    assert_problem(client.get("/health/live", headers=many), 431)
    assert_problem(client.get("/health/live", headers={"x-big": "a" * 33_000}), 431)
    assert_problem(client.get("/v1/memories?q=" + "a" * 8_100), 414)


@pytest.mark.parametrize("key", ["abc", "k" * 256, "a\tb"])
def test_an_idempotency_key_is_refused_not_ignored(
    client: httpx.Client, session: str, key: str
) -> None:
    response = client.post(
        f"/v1/sessions/{session}/turns",
        json={"message": "x"},
        headers={**JSON, "Idempotency-Key": key},
    )
    assert_problem(response, 400)
    assert response.json()["code"] == "not_supported"


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "since=never", "role=system", "session_id=a%0a", "q=%00"],
)
def test_query_parameters_that_cannot_be_right_are_400(client: httpx.Client, query: str) -> None:
    assert_problem(client.get(f"/v1/memories?{query}"), 400, names=query.partition("=")[0])


def test_a_cursor_of_ones_own_making_is_400(client: httpx.Client) -> None:
    for cursor in ("x", "e30=", "%FF"):
        assert_problem(client.get(f"/v1/sessions?cursor={cursor}"), 400, names="cursor")


def test_a_budget_may_only_be_lowered(client: httpx.Client, session: str) -> None:
    path = f"/v1/sessions/{session}/context"
    body = {"query": "x", "budget": {"recall_tokens": 1201}}
    assert_problem(client.post(path, json=body), 400, names="budget.recall_tokens")
    body = {"query": "x", "budget": {"context_tokens": 200, "recall_tokens": 10}}
    assert (client.post(path, json=body)).status_code == 200


def test_system_and_question_over_the_budget_are_422_with_the_numbers(
    client: httpx.Client, session: str
) -> None:
    response = client.post(
        f"/v1/sessions/{session}/turns", json={"message": "word " * 9_000}, headers=JSON
    )
    assert_problem(response, 422)
    problem = response.json()
    assert problem["needed_tokens"] > problem["budget_tokens"] == 8000
    assert (client.get(f"/v1/sessions/{session}")).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", ""])
def test_a_foreign_host_is_421(client: httpx.Client, host: str) -> None:
    """S5: DNS rebinding."""
    assert_problem(client.get("/v1/sessions", headers={"host": host}), 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[::1", "file://"])
def test_a_foreign_origin_is_refused_without_cors_headers(
    client: httpx.Client, origin: str
) -> None:
    """S5."""
    response = client.get("/v1/sessions", headers={"origin": origin})
    assert_problem(response, 403)
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/turns/nope", 404),
        ("GET", "/v1/sessions/unknown", 404),
        ("GET", "/v1/sessions/unknown/messages", 404),
        ("DELETE", "/v1/sessions/unknown", 404),
        ("PUT", "/v1/sessions/unknown", 405),
        ("GET", "/v1/turns/x/events", 404),
        ("POST", "/v1/turns/x/cancel", 404),
        ("DELETE", "/v1/memories/x", 404),
        ("GET", "/v1/me/export", 404),
        ("DELETE", "/v1/me", 404),
        ("POST", "/v1/admin/sweep", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/metrics", 404),
        ("GET", "/ui", 404),
        ("GET", "/mcp", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_form(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    assert_problem(client.request(method, path), status)


def test_a_user_id_that_is_not_plain_text_is_400(client: httpx.Client) -> None:
    for name in (b"", b"a b", b"\xe9", b"a" * 257):
        assert_problem(client.get("/v1/sessions", headers={b"X-User-Id": name}), 400)


def _raw(service: Service, request: bytes) -> bytes:
    """The start of the answer to bytes that no client library would send."""
    port = int(service.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(request)
            return connection.recv(4096)
        except ConnectionError:
            return b""
