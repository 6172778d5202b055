"""Keys: their part of the configuration, how one is made, and who speaks with one.

Of a key only its SHA-256 digest is kept; the key itself is shown once, by `strata token --key`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from memory import User
from memory.config import Group
from memory.errors import ConfigError, InvalidInput

NAME = re.compile(r"\A[\x21-\x7e]{1,256}\Z")
TENANT = "local"
DEFAULT_USER = "local"
KEY_BYTES = 32
_PREFIX = "sk-strata-"
_DIGEST = re.compile(r"\A[0-9a-f]{64}\Z")

KeyScope = Literal["chat", "admin"]


def _name(value: str) -> str:
    if not NAME.match(value):
        raise ValueError("1 to 256 visible ASCII characters")
    return value


def _key_id(value: str) -> str:
    if not re.match(r"\A[A-Za-z0-9._-]{1,64}\Z", value):
        raise ValueError("1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return value


def _text_or_time(value: Any) -> Any:
    if value is not None and not isinstance(value, str | date):
        raise ValueError("write a time as 2030-01-31T00:00:00Z")
    return value


def _with_zone(value: datetime | None) -> datetime | None:
    if value is not None and value.tzinfo is None:
        raise ValueError("has no time zone: write it as 2030-01-31T00:00:00Z")
    return value


class AuthKey(Group):
    """Who speaks with one key, what for and until when. In logs it is its `id`."""

    id: Annotated[str, AfterValidator(_key_id)]
    sha256: SecretStr
    tenant: Annotated[str, AfterValidator(_name)]
    user: Annotated[str, AfterValidator(_name)]
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)] = ("chat",)
    expires: Annotated[
        datetime | None, BeforeValidator(_text_or_time), AfterValidator(_with_zone)
    ] = None

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, value: SecretStr) -> SecretStr:
        digest = value.get_secret_value().lower()
        if not _DIGEST.match(digest):
            raise ValueError("64 hexadecimal digits, as `strata token --key` prints them")
        return SecretStr(digest)

    def expired(self, moment: datetime) -> bool:
        return self.expires is not None and self.expires <= moment


class AuthConfig(Group):
    mode: Literal["local", "keys"] = "local"
    keys: tuple[AuthKey, ...] = ()

    @field_validator("mode", mode="before")
    @classmethod
    def _built(cls, value: Any) -> Any:
        if value == "jwt":
            raise ValueError("jwt is not there yet: use keys (`strata token --key` makes one)")
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for field in ("id", "sha256"):
            first: dict[Any, int] = {}
            for place, key in enumerate(self.keys):
                if (before := first.setdefault(getattr(key, field), place)) != place:
                    raise ConfigError(
                        f"auth.keys[{place}].{field}",
                        f"is that of auth.keys[{before}] too",
                        "each key has its own; `strata token --key` makes another",
                    )
        if self.mode == "keys" and not self.keys:
            raise ConfigError(
                "auth.keys", "auth.mode = keys needs at least one", "`strata token --key` makes it"
            )
        if self.mode == "local" and self.keys:
            # Else a forgotten mode would leave the door open that the keys were made for.
            raise ConfigError(
                "auth.mode", "is local, where no key is asked for", "set auth.mode = keys"
            )
        return self


def find_key(key: str, known: Sequence[AuthKey]) -> AuthKey | None:
    """The entry of this key, expired or not. The time that it takes tells nothing of any digest:
    each one is compared, in constant time."""
    digest = digest_of(key).encode()
    found = None
    for entry in known:
        if hmac.compare_digest(digest, entry.sha256.get_secret_value().encode()):
            found = entry
    return found


def owner(config: AuthConfig, *, user: str | None, tenant: str | None, key: str | None) -> User:
    """Whose memory a command is about. Where the configuration knows the key, the key decides,
    and a `user` or `tenant` that says otherwise is refused. Raises InvalidInput."""
    entry = find_key(key, config.keys) if key else None
    if entry is None:
        return User(tenant or TENANT, user or DEFAULT_USER)
    if user not in (None, entry.user) or tenant not in (None, entry.tenant):
        raise InvalidInput("--key", f"is that of {entry.user} of the tenant {entry.tenant}")
    return User(entry.tenant, entry.user)


def digest_of(key: str) -> str:
    """64 hexadecimal digits. Keys are random, so a plain digest is as good as a slow one."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key of 256 random bits, 43 characters after its prefix."""
    return _PREFIX + secrets.token_urlsafe(KEY_BYTES)


def to_paste(entry: AuthKey) -> str:
    """The entry as it goes into strata.toml (the text is TOML) or into a variable."""
    fields = {
        "id": entry.id,
        "sha256": entry.sha256.get_secret_value(),
        "tenant": entry.tenant,
        "user": entry.user,
    }
    # Written so that no shell and no reader of .env files takes a character for its own.
    line = re.sub(
        r"""\\(["\\])|['$]""",
        lambda m: f"\\u{ord(m[1] or m[0]):04x}",
        json.dumps([fields], separators=(",", ":")),
    )
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return (
        '# for strata.toml, beside mode = "keys" in [auth]:\n'
        f"[[auth.keys]]\n{table}\n"
        "# or as a variable, also in .env beside docker-compose.yml (more keys: one list):\n"
        f"# STRATA_AUTH__KEYS='{line}'"
    )
