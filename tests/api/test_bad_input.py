"""docs/promises.md, "Bad input": every row that concerns these routes, over a real socket."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest
from system.process import Model, Service

from api.conftest import CANARY
from api.shapes import PROBLEM, assert_problem

BODIES = {
    "turns": {"message": f"hello {CANARY}", "stream": False},
    "messages": {"messages": [{"role": "user", "content": f"hello {CANARY}"}]},
    "context": {"query": f"hello {CANARY}"},
}
ROUTES = [*BODIES, ""]
JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def send(client: httpx.Client, session: str, route: str, **request: Any) -> httpx.Response:
    """POST to a route of a session, or PATCH the session itself."""
    path = f"/v1/sessions/{session}/{route}".rstrip("/")
    return client.request("POST" if route else "PATCH", path, **request)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{}",
        b'{"message": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b'{"message": "cut off',
        b'{"message": NaN}',
        b'{"metadata": {"x": Infinity}}',
        b"null",
        b"",
        b" ",
        b"[]",
        b'"text"',
        b"0",
        b'{"message": "\\ud800", "query": "\\udfff", "title": "\\ud800"}',
        b'{"message": "x", "query": "x", "title": "x", "unknown": 1}',
        b'{"message": "x", "query": "x", "$where": "1"}',
        b"{} {}",
        b'\xef\xbb\xbf{"message": "x"}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_cannot_be_right_is_400(
    client: httpx.Client, session: str, route: str, body: bytes
) -> None:
    assert_problem(send(client, session, route, content=body, headers=JSON), 400, "invalid_request")
    assert client.get(f"/v1/sessions/{session}").status_code == 404, "nothing was stored"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"message": 5}, "message"),
        ({}, "message"),
        ({"message": "x", "mesage": "y"}, "mesage"),
        ({"message": "x", "options": {"temperature": 9}}, "options.temperature"),
        ({"message": " \n\t "}, "message"),
        ({"message": ""}, "message"),
        ({"message": "a\0b"}, "message"),
        ({"message": {"$gt": ""}}, "message"),
        ({"message": ["x"]}, "message"),
        ({"message": "x", "system": "a\0b"}, "system"),
        ({"message": "x", "system": {"$gt": ""}}, "system"),
        ({"message": "x", "memory": "write"}, "memory"),
        ({"message": "x", "memory": {"$ne": True}}, "memory"),
        ({"message": "x", "recall": "everything"}, "recall"),
        ({"message": "x", "recall": {"$gt": ""}}, "recall"),
        ({"message": "x", "stream": {"$gt": ""}}, "stream"),
        ({"message": "x", "metadata": []}, "metadata"),
        ({"message": "x", "metadata": {"k": "v" * 20_000}}, "metadata"),
        ({"message": "x", "session_id": {"a": 1}}, "session_id"),
        ({"message": "x", "user": "somebody"}, "user"),
    ],
)
def test_the_answer_names_the_field(
    client: httpx.Client, session: str, body: dict[str, Any], field: str
) -> None:
    problem = assert_problem(send(client, session, "turns", json=body), 400, "invalid_request")
    assert field in problem["detail"]


@pytest.mark.parametrize(
    "metadata",
    [{"x": 10**30}, {"x": -(10**30)}, {"x": 2**64 - 1}, {"a\0": "\0"}, {"x": 1e308}, {"x": -0.0}],
)
def test_odd_metadata_is_kept_or_refused_but_never_a_crash(
    client: httpx.Client, session: str, metadata: dict[str, Any]
) -> None:
    body = {**BODIES["turns"], "metadata": metadata}
    response = send(client, session, "turns", json=body)
    if response.status_code == 200:
        turn = client.get(f"/v1/turns/{response.json()['turn_id']}")
        assert turn.json()["metadata"] == metadata
    else:
        assert_problem(response, 400)
    changed = send(client, session, "", json={"metadata": metadata})
    assert changed.status_code in (200, 400, 404)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "session_id",
    ["abc%0a", "abc%0d%0a", "%00", "abc%00", "..%2f", "..%2fx", "a%2fb", "a%20b", "é", "%ff",
     "a" * 129, "a" * 7000, "%7b%22%24gt%22%3a%22%22%7d", "[object Object]", "a;b", "$ne"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_session_id_outside_the_alphabet_is_400_or_404(
    client: httpx.Client, session_id: str, route: str
) -> None:
    response = send(client, session_id, route, json=BODIES.get(route, {"title": "x"}))
    assert response.status_code in (400, 404)
    assert_problem(response, response.status_code)
    if not route:
        for method in ("GET", "DELETE"):
            gone = client.request(method, f"/v1/sessions/{session_id}")
            assert_problem(gone, gone.status_code)
            assert gone.status_code in (400, 404, 405)


@pytest.mark.parametrize("session_id", ["a", "A.b_c:d-9", "0", "a" * 128, "-", ":::"])
def test_every_session_id_of_the_alphabet_works(client: httpx.Client, session_id: str) -> None:
    assert send(client, session_id, "turns", json=BODIES["turns"]).status_code == 200
    assert client.get(f"/v1/sessions/{session_id}").json()["session_id"] == session_id
    assert client.delete(f"/v1/sessions/{session_id}").status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "text/plain; charset=application/json", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "application/xml", "application/jsonp", ""],
)  # fmt: skip
def test_a_body_of_another_media_type_is_415(
    client: httpx.Client, session: str, route: str, media_type: str
) -> None:
    body = json.dumps(BODIES.get(route, {"title": "x"})).encode()
    response = send(client, session, route, content=body, headers={"Content-Type": media_type})
    assert_problem(response, 415, "unsupported_media_type")


def test_json_with_a_charset_is_json(client: httpx.Client, session: str) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    content = json.dumps(BODIES["turns"]).encode()
    assert send(client, session, "turns", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_over_the_limit_is_413(client: httpx.Client, session: str, route: str) -> None:
    body = json.dumps({"message": "a" * 300_000}).encode()
    assert_problem(send(client, session, route, content=body, headers=JSON), 413, "too_large")
    chunks = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    chunked = send(client, session, route, content=chunks, headers=JSON)
    assert_problem(chunked, 413, "too_large")


def test_a_body_just_below_the_limit_is_read(client: httpx.Client, session: str) -> None:
    padding = " " * (255_000 - len(json.dumps(BODIES["turns"])))
    content = json.dumps(BODIES["turns"]).encode() + padding.encode()
    assert send(client, session, "turns", content=content, headers=JSON).status_code == 200


def test_a_message_over_the_limit_is_413_and_names_the_limit(
    client: httpx.Client, session: str
) -> None:
    for text in ("a" * 64_001, "é" * 32_001):
        problem = assert_problem(send(client, session, "turns", json={"message": text}), 413)
        assert "64000" in problem["detail"]


def test_too_many_or_too_large_headers_are_431_and_a_long_url_is_414(client: httpx.Client) -> None:
    many = {f"x-{n}": "1" for n in range(101)}
    assert_problem(client.get("/health/live", headers=many), 431, "headers_too_large")
    big = {"x-big": "a" * 33_000}
    assert_problem(client.get("/health/live", headers=big), 431, "headers_too_large")
    assert client.get("/health/live", headers={"x-big": "a" * 30_000}).status_code == 200
    assert_problem(client.get("/v1/memories?q=" + "a" * 8_100), 414, "url_too_long")
    assert_problem(client.get("/v1/sessions/" + "a" * 8_100), 414, "url_too_long")


@pytest.mark.parametrize("name", [b"", b"a b", b"\xe9", b"a" * 257, b"a\tb", b"\xff\xfe"])
def test_a_user_id_that_is_not_plain_text_is_400(client: httpx.Client, name: bytes) -> None:
    headers: Any = {b"X-User-Id": name}
    assert_problem(client.get("/v1/sessions", headers=headers), 400)


@pytest.mark.parametrize(
    ("keys", "memory"),
    [
        ([b"k" * 256], True),
        ([b"a\tb"], True),
        ([b"a b"], True),
        ([b""], True),
        ([b"\xc3\xa4"], True),
        ([b"\xe4"], True),
        ([b"a", b"a"], True),
        ([b"a"], False),
        ([b"a"], "read"),
    ],
)
def test_an_idempotency_key_that_cannot_count_is_400(
    client: httpx.Client, model: Model, session: str, keys: list[bytes], memory: bool | str
) -> None:
    headers: Any = [(b"Idempotency-Key", key) for key in keys]
    body = {**BODIES["turns"], "memory": memory}
    response = send(client, session, "turns", json=body, headers=headers)
    assert assert_problem(response, 400, "invalid_request")["field"] == "Idempotency-Key"
    assert model.requests() == []


def test_the_longest_idempotency_key_counts(client: httpx.Client, session: str) -> None:
    key = "".join(chr(33 + n % 94) for n in range(255))
    for _ in range(2):
        response = send(
            client, session, "turns", json=BODIES["turns"], headers={"Idempotency-Key": key}
        )
        assert response.status_code == 200, response.text
    assert response.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    "last",
    [
        "{id}",
        "{id}.1:x",
        "{id}.1:t",
        "{id}.1:t-1",
        "{id}.x:e",
        "{id}:a",
        "x.1:a",
        "{id}.1:a ;",
        "%",
    ],
)
def test_an_event_id_that_is_none_of_this_turn_is_400(
    client: httpx.Client, session: str, last: str
) -> None:
    turn_id = send(client, session, "turns", json=BODIES["turns"]).json()["turn_id"]
    headers = {"Last-Event-ID": last.format(id=turn_id)}
    response = client.get(f"/v1/turns/{turn_id}/events", headers=headers)
    assert assert_problem(response, 400, "invalid_request")["field"] == "Last-Event-ID"


class Raw:
    """Bytes that no client library would send, and the answer to them."""

    def __init__(self, service: Service) -> None:
        self._port = int(service.url.rsplit(":", 1)[1])

    def ask(self, *parts: bytes) -> tuple[int, bytes]:
        """Status (0 when the connection was simply closed) and everything that came."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as connection:
            answer = b""
            with suppress(ConnectionError):  # it may be answered and closed before all is sent
                for part in parts:
                    connection.sendall(part)
            connection.settimeout(1.0)  # what is not complete is never answered
            try:
                while more := connection.recv(65536):
                    answer += more
            except (ConnectionError, TimeoutError):
                pass
        return (int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0), answer


@pytest.fixture
def raw(service: Service) -> Raw:
    return Raw(service)


def head(target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: localhost", *headers]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def test_a_session_id_of_a_megabyte_is_refused(raw: Raw) -> None:
    status, _ = raw.ask(head(b"/v1/sessions/" + b"a" * 1_000_000))
    assert status in (0, 400, 404, 414, 431)


def test_a_chunked_body_over_the_limit_is_413_before_it_ends(raw: Raw) -> None:
    start = head(
        b"/v1/sessions/x/turns", b"Content-Type: application/json", b"Transfer-Encoding: chunked",
        method=b"POST",
    )  # fmt: skip
    chunk = b"%x\r\n%b\r\n" % (20_000, b"a" * 20_000)
    status, answer = raw.ask(start, *[chunk] * 20)
    assert status == 413
    assert b"application/problem+json" in answer


def test_a_length_over_the_limit_is_413_before_the_body_comes(raw: Raw) -> None:
    start = head(
        b"/v1/sessions/x/turns", b"Content-Type: application/json", b"Content-Length: 1000000000",
        method=b"POST",
    )  # fmt: skip
    status, _ = raw.ask(start, b'{"message": "')
    assert status == 413


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/sessions?limit=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/sessions/x/turns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        b"\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/sessions/x/turns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        b"\r\nContent-Length: 100\r\n\r\n{",
        b"\r\n\r\n\r\n",
        b"A" * 100_000,
    ],
    ids=range(10),
)
def test_what_is_no_request_crashes_nothing(
    raw: Raw, client: httpx.Client, request_: bytes
) -> None:
    status, answer = raw.ask(request_)
    assert status < 500, answer[:500]
    assert client.get("/health/live").status_code == 200


def test_no_host_or_two_is_refused(raw: Raw) -> None:
    """S5."""
    ask = b"GET /v1/sessions HTTP/1.1\r\nConnection: close\r\n"
    for hosts in (
        b"",
        b"Host: evil.example\r\nHost: localhost\r\n",
        b"Host: localhost\r\nHost: evil.example\r\n",
    ):
        status, _ = raw.ask(ask + hosts + b"\r\n")
        assert status in (400, 421), hosts


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.1", "", "127.0.0.1.nip.io", "[::2]",
     "localhost@evil.example", "evil.example:8000", "127.0.0.2", "[::1].evil", "0.0.0.0"],
)  # fmt: skip
def test_a_foreign_host_is_421(client: httpx.Client, host: str) -> None:
    """S5: DNS rebinding."""
    for path in ("/v1/sessions", "/health/ready", "/schema", "/nothing"):
        assert_problem(client.get(path, headers={"Host": host}), 421, "misdirected_request")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1",
                                  "[::1]", "[::1]:8000"])  # fmt: skip
def test_a_local_host_is_taken(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/sessions", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://[::1", "file://", "http://localhost.evil.example",
     "http://evil.example:8000", "chrome-extension://abc", "http://localhost@evil.example", ""],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_foreign_origin_is_refused_without_cors_headers(
    client: httpx.Client, session: str, method: str, origin: str
) -> None:
    """S5."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    body = BODIES["turns"] if method == "POST" else None
    response = client.request(method, f"/v1/sessions/{session}/turns", headers=headers, json=body)
    assert_problem(response, 403, "forbidden")
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.get(f"/v1/sessions/{session}").status_code == 404


def test_a_local_origin_is_taken_without_cors_headers(client: httpx.Client) -> None:
    for origin in ("http://localhost:3000", "http://127.0.0.1", "https://[::1]:8000"):
        response = client.get("/v1/sessions", headers={"Origin": origin})
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/turns/nope", 404),
        ("GET", "/v1/sessions/unknown", 404),
        ("GET", "/v1/sessions/unknown/messages", 404),
        ("DELETE", "/v1/sessions/unknown", 404),
        ("PUT", "/v1/sessions/unknown", 405),
        ("GET", "/v1/sessions/unknown/turns", 405),
        ("GET", "/v1/sessions/unknown/context", 405),
        ("POST", "/v1/memories", 405),
        ("DELETE", "/health/live", 405),
        ("TRACE", "/health/live", 405),
        # Not there yet.
        ("GET", "/v1/turns/x/events", 404),
        ("POST", "/v1/turns/x/cancel", 404),
        ("DELETE", "/v1/memories/x", 404),
        ("GET", "/v1/me/export", 404),
        ("DELETE", "/v1/me", 404),
        ("GET", "/v1/admin/users/x/export", 404),
        ("DELETE", "/v1/admin/users/x", 404),
        ("POST", "/v1/admin/sweep", 404),
        ("POST", "/v1/admin/reindex", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/ui", 404),
        ("GET", "/mcp", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_form(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    problem = assert_problem(client.request(method, path), status)
    assert set(problem) == PROBLEM


def test_a_request_id_is_echoed_or_made(client: httpx.Client) -> None:
    given = client.get("/nope", headers={"X-Request-Id": "trace-42/a"})
    assert given.headers["x-request-id"] == given.json()["request_id"] == "trace-42/a"
    ok = client.get("/health/live", headers={"X-Request-Id": "trace-43"})
    assert ok.headers["x-request-id"] == "trace-43"
    made = {client.get("/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for odd in ("a b", "x" * 129, "", "a\tb"):
        response = client.get("/nope", headers={"X-Request-Id": odd})
        assert response.headers["x-request-id"] not in (odd, "")


def test_no_header_tells_what_serves(client: httpx.Client) -> None:
    response = client.get("/health/live")
    assert "server" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"
