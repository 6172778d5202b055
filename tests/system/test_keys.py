"""The commands with keys: they speak as the key's user, and never as anybody else by mistake."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.auth.keys import digest_of, new_key
from system.conftest import BY_WORDS
from system.process import Service, serving, strata

ANNA, BERTA = new_key(), new_key()
QUICK: dict[str, Any] = {"embedding": BY_WORDS, "index": {"url": "none"}}
KEYS = [
    {"id": "a", "sha256": digest_of(ANNA), "tenant": "acme", "user": "anna"},
    {"id": "b", "sha256": digest_of(BERTA), "tenant": "acme", "user": "berta"},
]
KEYED = {**QUICK, "auth": {"mode": "keys", "keys": json.dumps(KEYS)}}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("keyed"), **KEYED) as service:
        yield service


def lines(folder: Path, *contents: str) -> str:
    path = folder / "lines.ndjson"
    path.write_text("".join(
        json.dumps({"session_id": "s", "role": "user", "content": content, "id": content}) + "\n"
        for content in contents
    ))  # fmt: skip
    return str(path)


def contents(text: str) -> list[str]:
    return [json.loads(line)["content"] for line in text.splitlines()]


def test_a_command_elsewhere_speaks_with_the_key_it_is_given(keyed: Service, folder: Path) -> None:
    """From a machine that knows the address and the key, and nothing of the configuration."""
    at = ("--url", keyed.url)
    done = strata("import", lines(folder, "one", "two"), *at, "--key", ANNA, folder=folder)
    assert done.stdout.strip() == "2 messages imported, 0 were there already", done.stderr
    for key, found in ((ANNA, ["one", "two"]), (BERTA, [])):
        done = strata("export", *at, "--key", key, folder=folder)
        assert done.returncode == 0, done.stderr
        assert contents(done.stdout) == found
    assert not (folder / ".strata").exists()


def test_the_key_can_be_a_variable(keyed: Service, folder: Path, monkeypatch: Any) -> None:
    """STRATA_KEY is no configuration, though it begins like it."""
    monkeypatch.setattr("system.process.environment", _with_key(ANNA))
    chatted = strata("chat", "talk", "--url", keyed.url, folder=folder, text="My dog is Biscuit.\n")
    assert chatted.returncode == 0, chatted.stderr
    done = strata("export", "anna", "--url", keyed.url, folder=folder)
    assert "My dog is Biscuit." in contents(done.stdout)


def _with_key(key: str) -> Any:
    from system.process import environment

    return lambda **more: environment(**more, STRATA_KEY=key)


@pytest.mark.parametrize("key", [(), ("--key", new_key()), ("--key", "é"), ("--key", "")])
def test_without_a_valid_key_a_command_is_refused_with_the_fix(
    keyed: Service, folder: Path, key: tuple[str, ...]
) -> None:
    for command in (("export", "anna"), ("import", lines(folder, "never"))):
        done = strata(*command, *key, "--url", keyed.url, folder=folder)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert "--key" in done.stderr


def test_a_user_that_no_header_can_hold_is_refused(keyed: Service, folder: Path) -> None:
    done = strata("export", "Zoë", "--url", keyed.url, folder=folder)
    assert done.returncode == 1
    assert "visible ASCII" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_users_do_not_become_one_by_a_key(keyed: Service, folder: Path) -> None:
    """A file of conversations is one user each; a key is of one."""
    file = folder / "conversations.json"
    turn = {"turn_id": "1", "speaker": "x", "role": "user", "text": "mixed"}
    session = {"session_id": "c", "datetime": "2024-05-08T12:00:00", "turns": [turn]}
    file.write_text(json.dumps([
        {"conversation_id": n, "user_id": n, "sessions": [session]} for n in ("anna", "carla")
    ]))  # fmt: skip
    command = ("import", str(file), "--format", "conversations", "--url", keyed.url, "--key", BERTA)
    done = strata(*command, folder=folder)
    assert done.returncode == 1
    assert "--user" in done.stderr
    done = strata(*command, "--user", "berta", folder=folder)
    assert done.returncode == 0, done.stderr


def test_another_user_than_the_keys_is_refused_where_it_is_known(
    keyed: Service, folder: Path
) -> None:
    for command in (("export", "berta"), ("import", lines(folder, "never"), "--user", "berta")):
        done = strata(*command, "--url", keyed.url, "--key", ANNA, folder=folder, **KEYED)
        assert done.returncode == 1
        assert "anna" in done.stderr


def test_stores_opened_here_belong_to_the_keys_tenant_and_user(folder: Path) -> None:
    """With no service running: with a key, by names, and never under a key that is unknown."""
    file = lines(folder, "one")
    assert strata("import", file, "--key", ANNA, folder=folder, **KEYED).returncode == 0
    for arguments, found in (
        (("--key", ANNA), ["one"]),
        (("anna", "--tenant", "acme"), ["one"]),
        (("anna",), []),
        (("--key", BERTA), []),
    ):
        done = strata("export", *arguments, folder=folder, **KEYED)
        assert done.returncode == 0, done.stderr
        assert contents(done.stdout) == found, arguments
    done = strata("export", "--key", new_key(), folder=folder, **KEYED)
    assert done.returncode == 1
    assert "auth.keys" in done.stderr


def test_the_memories_of_local_mode_stay_reachable_with_a_key(folder: Path) -> None:
    """`strata token` names the user of local mode unless told otherwise."""
    assert strata("import", lines(folder, "one"), folder=folder, **QUICK).returncode == 0
    made = strata("token", "--key", folder=folder)
    key, _, toml = made.stdout.partition("\n")
    (folder / "strata.toml").write_text(f'[auth]\nmode = "keys"\n{toml}')
    with serving(folder, **QUICK) as service:
        headers = {"Authorization": f"Bearer {key}"}
        with service.sync_client(headers=headers) as client:
            found = client.get("/v1/sessions/s/messages").json()["messages"]
        assert [m["content"] for m in found] == ["one"]
        done = strata("export", "--key", key, folder=folder, **QUICK)
        assert contents(done.stdout) == ["one"]


def test_the_shown_configuration_hides_digests_and_passwords(folder: Path) -> None:
    """And stays TOML."""
    shown = strata(
        "config", folder=folder, **{**KEYED, "store": {"url": "mongodb://me:s3cret@host/db"}}
    )
    assert shown.returncode == 0, shown.stderr
    config = tomllib.loads(shown.stdout)
    assert [key["id"] for key in config["auth"]["keys"]] == ["a", "b"]
    assert config["auth"]["keys"][0]["scopes"] == ["chat"]
    assert config["store"]["url"] == "mongodb://me:********@host/db"
    assert config["server"]["allowed_hosts"] == []
    for secret in ("s3cret", digest_of(ANNA)):
        assert secret not in shown.stdout + shown.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_another_address_on_the_command_line_needs_keys(folder: Path, host: str) -> None:
    """S5; the refusal names both fixes."""
    done = strata("serve", "--host", host, "--port", "0", folder=folder, **QUICK)
    assert done.returncode == 1
    for part in ("server.host", "127.0.0.1", "auth.mode = keys", "strata token --key"):
        assert part in done.stderr
