"""A request with a key: who it is, what it costs with many keys, and what a changed list means."""

from __future__ import annotations

import cProfile
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from memory.config import ConfigSource
from service.auth.authenticators import KeyAuth
from service.auth.keys import AuthConfig, AuthKey, digest_of, new_key
from service.config.settings import Settings


def keys_of(*keys: str, **more: Any) -> tuple[AuthKey, ...]:
    return tuple(
        AuthKey.model_validate(
            {"id": f"k{n}", "sha256": digest_of(key), "tenant": "acme", "user": f"user{n}", **more}
        )
        for n, key in enumerate(keys)
    )


def settings_with(keys: tuple[AuthKey, ...]) -> Settings:
    return Settings(auth=AuthConfig(mode="keys", keys=keys))


def request(key: str) -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
    return {"path": "/v1/sessions", "headers": headers, "state": {}}


def calls_of(auth: KeyAuth, key: str) -> int:
    """How many functions, built-in ones included, one request's check calls."""
    profile = cProfile.Profile()
    scope = request(key)
    profile.enable()
    refused = auth.refusal(scope)
    profile.disable()
    assert refused is None
    return sum(entry.callcount for entry in profile.getstats())


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_variables")
def test_a_request_costs_the_same_with_ten_keys_and_ten_thousand() -> None:
    counted = []
    for number in (10, 10_000):
        keys = [new_key() for _ in range(number)]
        auth = KeyAuth(ConfigSource(settings_with(keys_of(*keys))))
        counted.append(calls_of(auth, keys[-1]))
    assert counted[0] == counted[1]


@pytest.mark.usefixtures("no_variables")
def test_another_list_of_keys_counts_from_the_next_request_on() -> None:
    old, new = new_key(), new_key()
    source = ConfigSource(settings_with(keys_of(old)))
    auth = KeyAuth(source)
    assert auth.refusal(request(old)) is None
    source.current = settings_with(keys_of(new))
    assert auth.refusal(request(new)) is None
    refused = auth.refusal(request(old))
    assert refused is not None
    assert refused.status == 401


@pytest.mark.usefixtures("no_variables")
def test_an_expired_key_is_named_in_the_log_at_the_start_and_refused() -> None:
    key = new_key()
    with capture_logs() as logs:
        ended = keys_of(key, expires=datetime(2020, 1, 1, tzinfo=UTC))
        auth = KeyAuth(ConfigSource(settings_with(ended)))
    assert [(line["event"], line["key"]) for line in logs] == [("auth.key_expired", "k0")]
    assert auth.refusal(request(key)) is not None
