"""Health, the OpenAPI document, and a fuzzer that follows it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from system.process import Service

from api.conftest import CANARY

ROUTES = {
    "/v1/sessions/{session_id}/turns": {"post"},
    "/v1/turns/{turn_id}": {"get"},
    "/v1/turns/{turn_id}/events": {"get"},
    "/v1/turns/{turn_id}/cancel": {"post"},
    "/v1/sessions/{session_id}/messages": {"get", "post"},
    "/v1/sessions/{session_id}/context": {"post"},
    "/v1/sessions": {"get"},
    "/v1/sessions/{session_id}": {"get", "patch", "delete"},
    "/v1/memories": {"get"},
    "/health/live": {"get"},
    "/health/ready": {"get"},
    "/metrics": {"get"},
}
METHODS = {"get", "post", "put", "patch", "delete"}


def test_live_and_ready(client: httpx.Client) -> None:
    live = client.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "up"})
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    found = ready.json()
    assert found["status"] == "ready"
    assert found["degraded"] is False
    for part in ("store", "index", "embedding", "model", "projection"):
        assert found[part]["status"] == "ok", found
    assert found["model"]["name"] == "gpt-4.1-mini"


def test_the_document_lists_every_route(client: httpx.Client) -> None:
    response = client.get("/schema/openapi.json")
    assert response.status_code == 200
    document = response.json()
    assert document["openapi"].startswith("3.")
    assert {path: set(item) & METHODS for path, item in document["paths"].items()} == ROUTES
    turns = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]
    assert "text/event-stream" in turns["responses"]["200"]["content"]
    assert "200" in turns["responses"]
    recorded = document["paths"]["/v1/sessions/{session_id}/messages"]["post"]
    assert "201" in recorded["responses"]


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    """S11: no CDN."""
    response = client.get("/schema", follow_redirects=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/v1/sessions/{session_id}/turns" in response.text
    assert not re.findall(r"https?://|<script|@import|url\(", response.text)


def test_schemathesis_finds_no_server_error(service: Service) -> None:
    """docs/promises.md: schemathesis over the OpenAPI document: no 5xx."""
    schema = schemathesis.openapi.from_url(f"{service.url}/schema/openapi.json")
    headers = {"X-User-Id": f"{CANARY}-schemathesis"}
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        def run(case: Any) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=[not_a_server_error], headers=headers, timeout=20)

        run()
    assert tried > 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    "message memory recall stream system options metadata query budget messages title ttl role "
    "content created_at speaker id temperature stop context_tokens".split()
)


@given(
    body=st.dictionaries(fields, json_values, max_size=5) | json_values,
    route=st.sampled_from(["turns", "messages", "context", ""]),
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_no_body_crashes_a_decoder(service: Service, body: Any, route: str) -> None:
    """docs/promises.md: a fuzzer over the body decoder: no crash."""
    import json

    with service.sync_client(f"{CANARY}-fuzzer") as client:
        path = f"/v1/sessions/{CANARY}-fuzz/{route}".rstrip("/")
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        response = client.request(
            "POST" if route else "PATCH",
            path,
            content=content,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
    assert response.status_code < 500, response.text
