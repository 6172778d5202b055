"""The shown configuration is TOML that reads back, described, with secrets masked."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from service.auth.keys import AuthConfig, AuthKey, digest_of
from service.config.settings import Settings
from service.config.shown import as_toml, without_password


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    entry = {"id": "a", "sha256": digest_of("x"), "tenant": "acme", "user": "anna"}
    timed = {**entry, "id": "b", "sha256": digest_of("y"), "expires": "2030-01-31T00:00:00Z"}
    keys = tuple(AuthKey.model_validate(key) for key in (entry, timed))
    return Settings(auth=AuthConfig(mode="keys", keys=keys))


def test_every_key_stands_below_its_description(settings: Settings) -> None:
    text = as_toml(settings)
    assert (
        "# Longest time a turn waits for recall; then it goes on without.\ndeadline = 0.15" in text
    )
    assert "# Key of the server. Unset: OPENAI_API_KEY.\n# api_key is not set" in text


def test_it_is_toml_of_every_group(settings: Settings) -> None:
    shown = tomllib.loads(as_toml(settings))
    assert list(shown) == list(Settings.model_fields)
    assert shown["ttl"]["session"] == "never"
    assert [key["id"] for key in shown["auth"]["keys"]] == ["a", "b"]
    assert shown["auth"]["keys"][1]["expires"].year == 2030


def test_no_digest_is_shown(settings: Settings) -> None:
    assert digest_of("x") not in as_toml(settings)


def test_passwords_in_urls_are_masked() -> None:
    shown = without_password("mongodb://strata:s3cret@mongo:27017/strata?authSource=admin")
    assert shown == "mongodb://strata:********@mongo:27017/strata?authSource=admin"
    for plain in ("sqlite:///.strata/strata.db", "http://127.0.0.1:6333", "mongodb://h1:1,h2:2/x"):
        assert without_password(plain) == plain
