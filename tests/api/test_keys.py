"""S1, S4, S5 with keys: who speaks is told by the key alone, and without one nothing is told."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest
from system.process import Model, Service, serving, strata
from waiting import slowdown

from api.shapes import assert_problem, history, memories, record, same_problem, say
from service.auth.keys import digest_of, new_key

ANNA, BERTA, SAME_NAME, EXPIRED, SOON, ADMIN = KEYS = [new_key() for _ in range(6)]
DIGESTS = [digest_of(key) for key in KEYS]
CANARY = "kumquat"
_numbers = count(1)

ROUTES = (
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/x"),
    ("PATCH", "/v1/sessions/x"),
    ("DELETE", "/v1/sessions/x"),
    ("GET", "/v1/sessions/x/messages"),
    ("POST", "/v1/sessions/x/messages"),
    ("POST", "/v1/sessions/x/context"),
    ("POST", "/v1/sessions/x/turns"),
    ("GET", "/v1/turns/x"),
    ("GET", "/v1/turns/x/events"),
    ("POST", "/v1/turns/x/cancel"),
    ("GET", "/v1/memories"),
    ("GET", "/v1/me/export"),
    ("DELETE", "/v1/me"),
    ("DELETE", "/v1/admin/users/anna"),
    ("OPTIONS", "/v1/sessions"),
    ("GET", "/v1/nothing"),
    ("GET", "/nothing"),
    ("GET", "/"),
    ("GET", "//v1/sessions"),
    ("GET", "/health/live/../../v1/sessions"),
    ("GET", "/schemas"),
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _entry(name: str, digest: str, user: str, tenant: str = "acme", **more: Any) -> dict[str, Any]:
    return {"id": name, "sha256": digest, "tenant": tenant, "user": user, **more}


@pytest.fixture(scope="module")
def soon() -> datetime:
    """When a key expires that is valid when the service starts, also on a busy machine."""
    return datetime.now(UTC) + timedelta(seconds=3 * max(slowdown() for _ in range(3)))


@pytest.fixture(scope="module")
def keyed(
    soon: datetime, model_process: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with keys on every address. Its log must not hold one, nor a digest."""
    keys = [
        _entry("anna-phone", DIGESTS[0], f"{CANARY}-anna"),
        _entry("berta", DIGESTS[1], f"{CANARY}-berta", expires="2999-01-01T00:00:00+01:00"),
        _entry("anna-elsewhere", DIGESTS[2].upper(), f"{CANARY}-anna", tenant="other"),
        _entry("gone", DIGESTS[3], f"{CANARY}-anna", expires="2020-01-01T00:00:00Z"),
        _entry("soon", DIGESTS[4], f"{CANARY}-anna", expires=soon.isoformat()),
        _entry("admin", DIGESTS[5], f"{CANARY}-anna", scopes=["admin"]),
    ]  # fmt: skip
    with serving(
        tmp_path_factory.mktemp("keyed"),
        fake=model_process,
        auth={"mode": "keys", "keys": json.dumps(keys)},
        server={"host": "0.0.0.0", "log_level": "debug"},
        embedding={"provider": "none"},
        projector={"interval": "50ms"},
    ) as service:
        yield service
        service.terminate()
        log = service.log.read_text()
        for secret in (*KEYS, *DIGESTS):
            assert secret not in log, "S7"
            assert secret.upper() not in log, "S7"
        assert CANARY not in log, "S7"
        assert '"key": "anna-phone"' in log
        assert [x["key"] for x in service.child.lines() if x["event"] == "auth.key_expired"] == [
            "gone"
        ]
        assert '"status": 500' not in log


def talking(service: Service, key: str | None) -> httpx.Client:
    return service.sync_client(headers=bearer(key) if key else {})


@pytest.fixture
def anna(keyed: Service) -> Iterator[httpx.Client]:
    with talking(keyed, ANNA) as client:
        yield client


@pytest.fixture
def berta(keyed: Service) -> Iterator[httpx.Client]:
    with talking(keyed, BERTA) as client:
        yield client


@pytest.fixture
def nobody(keyed: Service) -> Iterator[httpx.Client]:
    with talking(keyed, None) as client:
        yield client


@pytest.fixture
def session() -> str:
    return f"{CANARY}.keys{next(_numbers)}"


def refused(response: httpx.Response) -> Any:
    assert response.headers["www-authenticate"] == "Bearer"
    return assert_problem(response, 401, "unauthorized")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_valid_key_every_path_is_the_same_401(
    nobody: httpx.Client, method: str, path: str
) -> None:
    """S1: no, unknown and expired keys; before the path, the body or its type is looked at."""
    bodies: tuple[dict[str, Any], ...] = (
        {},
        {"content": b"[" * 1000, "headers": {"Content-Type": "text/plain"}},
        {"headers": bearer(new_key())},
        {"headers": bearer(EXPIRED)},
        {"headers": {"X-User-Id": f"{CANARY}-anna"}},
    )
    answers = [nobody.request(method, path, **body) for body in bodies]
    for answer in answers:
        refused(answer)
        assert same_problem(answer, answers[0])


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer:", f"Basic {ANNA}", ANNA, f"Token {ANNA}", f"Bearer {ANNA} x",
     f"Bearer {ANNA},{ANNA}", f'Bearer "{ANNA}"', f"Bearer {ANNA[:-1]}", f"Bearer {ANNA}=",
     f"Bearer {ANNA.upper()}", f"Bearer\t{ANNA}", f"Bearer {DIGESTS[0]}", f"Bearer {'a' * 5000}",
     "Bearer sha256:" + DIGESTS[0], "Bearer *", "Bearer %00", "Bearer null", "Bearer é"],
    ids=range(20),
)  # fmt: skip
def test_a_malformed_or_wrong_credential_is_401(nobody: httpx.Client, value: str) -> None:
    """S4."""
    refused(nobody.get("/v1/sessions", headers=[("Authorization", value.encode("latin-1"))]))


def test_two_credentials_are_none(nobody: httpx.Client) -> None:
    for second in (ANNA, BERTA):
        headers = [("Authorization", f"Bearer {ANNA}"), ("Authorization", f"Bearer {second}")]
        refused(nobody.get("/v1/sessions", headers=headers))


def test_a_key_is_taken_from_the_header_only(nobody: httpx.Client) -> None:
    for query in ({"key": ANNA}, {"access_token": ANNA}, {"authorization": f"Bearer {ANNA}"}):
        refused(nobody.get("/v1/sessions", params=query))
    refused(nobody.get("/v1/sessions", headers={"X-Api-Key": ANNA, "Cookie": f"key={ANNA}"}))


def test_the_scheme_is_read_in_any_case(nobody: httpx.Client) -> None:
    """RFC 9110."""
    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{scheme} {ANNA}"}
        assert nobody.get("/v1/sessions", headers=headers).status_code == 200


def test_a_key_ends_when_it_expires(keyed: Service, soon: datetime) -> None:
    with talking(keyed, SOON) as client:
        deadline = max(soon, datetime.now(UTC)) + timedelta(seconds=7)
        while (answer := client.get("/v1/sessions")).status_code == 200:
            assert datetime.now(UTC) < deadline
        refused(answer)


def test_a_key_without_the_scope_is_403(keyed: Service) -> None:
    with talking(keyed, ADMIN) as client:
        for method, path in ROUTES[:12]:
            problem = assert_problem(client.request(method, path), 403, "forbidden")
            assert "chat" in problem["detail"]


def test_nothing_but_the_key_changes_who_speaks(
    anna: httpx.Client, berta: httpx.Client, session: str
) -> None:
    """S1: neither a header nor a query nor a body."""
    say(anna, session, f"The vault code is 4711 {CANARY}s")
    foreign = {"X-User-Id": f"{CANARY}-anna", "X-Tenant-Id": "acme", "X-Forwarded-User": "anna"}
    unknown = berta.get("/v1/sessions/unknown")
    assert same_problem(berta.get(f"/v1/sessions/{session}", headers=foreign), unknown)
    assert "4711" not in berta.get("/v1/memories", headers=foreign, params={"user": "anna"}).text
    assert anna.get("/v1/sessions", headers={"X-User-Id": "a b"}).status_code == 200
    other = anna.get(f"/v1/sessions/{session}", headers={"X-User-Id": f"{CANARY}-berta"})
    assert other.json()["session_id"] == session
    body = {"query": "vault?", "user": f"{CANARY}-anna"}
    assert berta.post(f"/v1/sessions/{session}/context", json=body).status_code == 400


def test_the_same_name_in_another_tenant_is_another_user(
    keyed: Service, anna: httpx.Client, session: str
) -> None:
    turn = say(anna, session, f"The vault code is 4711 {CANARY}s")
    with talking(keyed, SAME_NAME) as other:
        assert other.get(f"/v1/turns/{turn['turn_id']}").status_code == 404
        assert other.get(f"/v1/sessions/{session}").status_code == 404
        assert "4711" not in str(memories(other, q="vault code"))
        record(other, session, "mine")
        assert [m["content"] for m in history(other, session)["messages"]] == ["mine"]
    assert len(history(anna, session)["messages"]) == 2


def test_health_and_the_schema_are_open(nobody: httpx.Client) -> None:
    for path in ("/health/live", "/health/ready", "/schema", "/schema/openapi.json"):
        assert nobody.get(path).status_code == 200, path


def test_a_foreign_host_or_origin_is_no_reason_to_refuse_a_key(anna: httpx.Client) -> None:
    """And no CORS headers let a page of that origin read the answer."""
    foreign = {"Host": "chat.example.org", "Origin": "https://evil.example"}
    for method, headers in (("GET", foreign), ("OPTIONS", foreign)):
        answer = anna.request(method, "/v1/sessions", headers=headers)
        assert answer.status_code in (200, 204)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_refused_body_is_not_waited_for(keyed: Service) -> None:
    """A gigabyte without a key costs nothing."""
    host, port = keyed.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/sessions/x/turns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000000\r\n\r\n{"
        )
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert re.search(rb"\r\nwww-authenticate: Bearer\r\n", answer, re.IGNORECASE)


def test_allowed_hosts_are_the_only_ones(
    model_process: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hosts")
    groups: dict[str, Any] = {
        "auth": {"mode": "keys", "keys": json.dumps([_entry("a", DIGESTS[0], "anna")])},
        "server": {"allowed_hosts": '["Chat.example.org", "[::1]"]'},
        "embedding": {"provider": "none"},
    }
    with serving(folder, fake=model_process, **groups) as service:
        with talking(service, ANNA) as client:
            for host in ("chat.example.org", "CHAT.EXAMPLE.ORG:8443", "[::1]:1"):
                answer = client.get("/v1/sessions", headers={"Host": host})
                assert answer.status_code == 200, host
            for host in ("evil.example", "127.0.0.1", "chat.example.org.evil", "x@[::1]", "",
                         "chat.example.org:x"):  # fmt: skip
                answer = client.get("/v1/sessions", headers={"Host": host})
                assert_problem(answer, 421, "misdirected_request")
            # A probe asks by address.
            assert client.get("/health/live", headers={"Host": "10.0.0.7:8000"}).status_code == 200
        # The commands find their way to the running service all the same.
        done = strata("export", "--key", ANNA, folder=folder, **groups)
        assert done.returncode == 0, done.stderr
