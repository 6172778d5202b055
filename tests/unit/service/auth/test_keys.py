"""Keys: their configuration is refused with the place and the fix; digests are compared."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from memory import User
from memory.errors import ConfigError, InvalidInput
from service.auth.keys import AuthConfig, AuthKey, Keyring, digest_of, new_key, owner, to_paste
from service.cli.main import app
from service.config.loading import load_settings
from service.config.settings import Settings

KEY, OTHER = new_key(), new_key()


def entry(key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"id": "a", "sha256": digest_of(key), "tenant": "acme", "user": "anna", **more}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings from STRATA_AUTH__KEYS and other variables."""
    monkeypatch.chdir(tmp_path)

    def load_(*keys: Any, mode: str = "keys", **variables: str) -> Settings:
        monkeypatch.setenv("STRATA_AUTH__MODE", mode)
        monkeypatch.setenv("STRATA_AUTH__KEYS", json.dumps(keys))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return load_


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ([], ("auth.keys", "strata token --key")),
        ([entry(sha256="12ab")], ("auth.keys[0].sha256", "64", "strata token --key")),
        ([entry(sha256="g" * 64)], ("auth.keys[0].sha256", "64")),
        ([entry(sha256=KEY)], ("auth.keys[0].sha256", "64")),
        ([entry(), entry(OTHER)], ("auth.keys[1].id", "auth.keys[0]")),
        ([entry(), entry(id="b")], ("auth.keys[1].sha256", "auth.keys[0]")),
        ([entry(), entry(id="b", sha256=digest_of(KEY).upper())], ("auth.keys[1].sha256",)),
        ([entry(id="a b")], ("auth.keys[0].id",)),
        ([entry(tenant="")], ("auth.keys[0].tenant", "256")),
        ([entry(user="a\nb")], ("auth.keys[0].user", "visible")),
        ([entry(scopes=["chat", "root"])], ("auth.keys[0].scopes[1]", "admin")),
        ([entry(scopes=[])], ("auth.keys[0].scopes",)),
        ([entry(expires="2030-01-31T00:00:00")], ("auth.keys[0].expires", "zone")),
        ([entry(expires="2030-01-31")], ("auth.keys[0].expires", "zone")),
        ([entry(expires=1_900_000_000)], ("auth.keys[0].expires", "2030-01-31T00:00:00Z")),
        ([entry(expires="soon")], ("auth.keys[0].expires",)),
        ([entry(skope="chat")], ("auth.keys[0].skope", "'scopes'")),
        ([{"id": "a"}], ("auth.keys[0].sha256",)),
        (["a"], ("auth.keys[0]",)),
    ],
    ids=range(19),
)
def test_a_wrong_key_is_refused_with_its_place_and_the_fix(
    load: Callable[..., Settings], keys: list[Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(*keys)
    for name in named:
        assert name in str(refused.value)
    assert KEY not in str(refused.value)
    assert digest_of(KEY) not in str(refused.value)


def test_a_variable_that_is_not_json_is_named_and_not_shown(load: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match="STRATA_AUTH__KEYS: is not JSON") as refused:
        load(STRATA_AUTH__KEYS=f"[{{{KEY}")
    assert KEY not in str(refused.value)


def test_keys_that_nobody_would_ask_for_are_refused(load: Callable[..., Settings]) -> None:
    """A forgotten mode would leave open what they were made to close."""
    with pytest.raises(ConfigError, match=r"auth\.mode.*set auth\.mode = keys"):
        load(entry(), mode="local")


def test_jwt_is_said_not_to_be_there(load: Callable[..., Settings]) -> None:
    with pytest.raises(ConfigError, match=r"auth\.mode: jwt is not there yet: use keys"):
        load(mode="jwt")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "strata.example.org"])
def test_another_address_needs_keys_and_the_refusal_names_both_fixes(
    load: Callable[..., Settings], host: str
) -> None:
    """S5."""
    with pytest.raises(ConfigError, match=r"server\.host.*127\.0\.0\.1.*auth\.mode = keys"):
        load(mode="local", STRATA_SERVER__HOST=host)
    assert load(entry(), STRATA_SERVER__HOST=host).server.host == host
    load(mode="local", STRATA_SERVER__HOST="127.0.0.1")
    with pytest.raises(ConfigError, match=r"server\.host.*127\.0\.0\.1.*auth\.mode = keys"):
        load_settings(server={"host": host})


def test_allowed_hosts_are_names_and_need_keys(load: Callable[..., Settings]) -> None:
    allowed = load(entry(), STRATA_SERVER__ALLOWED_HOSTS='["Chat.Example.org", "[::1]"]')
    assert allowed.server.allowed_hosts == ("chat.example.org", "[::1]")
    for wrong in ("https://chat.example.org", "chat.example.org:443", "", "a b", "*"):
        with pytest.raises(ConfigError, match=r"server\.allowed_hosts"):
            load(entry(), STRATA_SERVER__ALLOWED_HOSTS=json.dumps([wrong]))
    with pytest.raises(ConfigError, match=r"server\.allowed_hosts.*auth\.mode = keys"):
        load(mode="local", STRATA_SERVER__ALLOWED_HOSTS='["chat.example.org"]')


def test_a_key_for_clients_is_no_configuration(load: Callable[..., Settings]) -> None:
    assert load(entry(), STRATA_KEY=KEY).auth.mode == "keys"


def test_no_digest_stands_in_a_repr(load: Callable[..., Settings]) -> None:
    assert digest_of(KEY) not in repr(load(entry()))


def test_keys_are_found_by_their_digest_whatever_their_place() -> None:
    keys = [new_key() for _ in range(5)]
    known = [AuthKey.model_validate(entry(key, id=f"k{n}")) for n, key in enumerate(keys)]
    keyring = Keyring(known)
    for n, key in enumerate(keys):
        found = keyring.find(key)
        assert found is not None
        assert found.id == f"k{n}"
    for wrong in ("", "x", keys[0][:-1], keys[0] + "x", keys[0].swapcase(), digest_of(keys[0])):
        assert keyring.find(wrong) is None


def test_a_key_ends_at_its_moment() -> None:
    moment = datetime(2030, 1, 31, tzinfo=UTC)
    key = AuthKey.model_validate(entry(expires=moment))
    assert key.expired(moment)
    assert not key.expired(moment - timedelta(seconds=1))
    assert not AuthKey.model_validate(entry()).expired(moment)


def test_the_configured_key_decides_whose_memory_it_is() -> None:
    config = AuthConfig(mode="keys", keys=(AuthKey.model_validate(entry()),))
    assert owner(config, user=None, tenant=None, key=KEY) == User("acme", "anna")
    assert owner(config, user="anna", tenant="acme", key=KEY) == User("acme", "anna")
    assert owner(config, user="berta", tenant="t", key=None) == User("t", "berta")
    for said in ({"user": "berta", "tenant": None}, {"user": None, "tenant": "other"}):
        with pytest.raises(InvalidInput, match="is that of anna of the tenant acme"):
            owner(config, key=KEY, **said)


@given(user=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
def test_what_is_to_be_pasted_is_toml_and_a_variable(user: str) -> None:
    made = AuthKey.model_validate(entry(user=user))
    text = to_paste(made)
    assert AuthConfig(mode="keys", **tomllib.loads(text)["auth"]).keys == (made,)
    (line,) = re.findall(r"STRATA_AUTH__KEYS='([^']*)'$", text)
    assert "$" not in line
    assert AuthConfig(mode="keys", keys=json.loads(line)).keys == (made,)


def _token(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["token", *arguments])


def test_a_key_is_printed_once_and_differs_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = [_token("--key", "--id", "phone", "--tenant", "acme", "--user", "anna")
            for _ in range(2)]  # fmt: skip
    keys = [result.stdout.splitlines()[0] for result in made]
    assert keys[0] != keys[1]
    for key, result in zip(keys, made, strict=True):
        assert re.fullmatch(r"sk-strata-[A-Za-z0-9_-]{43}", key)
        assert result.stdout.count(key) == 1
        config = tomllib.loads(result.stdout.partition("\n")[2])["auth"]
        assert AuthConfig(mode="keys", **config).keys[0].sha256.get_secret_value() == digest_of(key)
        assert config["keys"][0] == {**entry(key), "id": "phone"}
    assert list(tmp_path.iterdir()) == [], "nothing is stored"


def test_a_token_that_cannot_be_is_refused() -> None:
    for arguments, said in (((), "strata token --key"), (("--key", "--user", "a b"), "--user"),
                            (("--key", "--id", "a b"), "--id")):  # fmt: skip
        result = _token(*arguments)
        assert result.exit_code == 1
        assert said in result.stderr
