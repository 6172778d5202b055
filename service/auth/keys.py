"""Keys: their part of the configuration, how one is made, and whose memory it opens.

Of a key only its SHA-256 digest is kept; the key itself is shown once, by `strata token --key`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

import tomli_w
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
    """One key: the user it belongs to, what it may do, and when it ends. Logs show its `id`."""

    id: Annotated[str, AfterValidator(_key_id)]
    """The key's name in logs, unique: 1 to 64 of A-Z a-z 0-9 . _ -"""
    sha256: SecretStr
    """The key's SHA-256 digest, 64 hexadecimal digits, as `strata token` prints it."""
    tenant: Annotated[str, AfterValidator(_name)]
    """The user's tenant: 1 to 256 visible ASCII characters."""
    user: Annotated[str, AfterValidator(_name)]
    """The user whose memory the key opens: 1 to 256 visible ASCII characters."""
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)] = ("chat",)
    """What the key may do. Every route of a user needs `chat`."""
    expires: Annotated[
        datetime | None, BeforeValidator(_text_or_time), AfterValidator(_with_zone)
    ] = None
    """When the key ends, with a time zone: 2030-01-31T00:00:00Z. Unset: never."""

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
    """How a request shows whose memory it is about."""

    mode: Literal["local", "keys"] = "local"
    """`local`: loopback only, the user is the header X-User-Id or `local`. `keys`: any address,
    and the key of each request decides the user."""
    keys: tuple[AuthKey, ...] = ()
    """The keys of mode `keys`; `strata token --key` makes one."""

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


class Keyring:
    """The configured keys by their digest: finding one costs the same however many there are.

    The time of a lookup can depend on the digest of the key that was sent, never on that key:
    to search for a digest byte by byte, an attacker would have to invert SHA-256 each time.
    """

    def __init__(self, keys: Iterable[AuthKey]) -> None:
        self._by_digest = {entry.sha256.get_secret_value(): entry for entry in keys}

    def find(self, key: str) -> AuthKey | None:
        """The entry of this key, expired or not."""
        return self._by_digest.get(digest_of(key))


def owner(config: AuthConfig, *, user: str | None, tenant: str | None, key: str | None) -> User:
    """Whose memory a command is about. Where the configuration knows the key, the key decides,
    and a `user` or `tenant` that says otherwise is refused. Raises InvalidInput."""
    entry = Keyring(config.keys).find(key) if key else None
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
    # JSON's own escapes for the characters that a shell or a reader of .env files would take as
    # its own. shlex.quote's way to write a quote is a shell's alone.
    line = re.sub(
        r"""\\(["\\])|['$]""",
        lambda m: f"\\u{ord(m[1] or m[0]):04x}",
        json.dumps([fields], separators=(",", ":")),
    )
    return (
        '# for strata.toml, beside mode = "keys" in [auth]:\n'
        f"{tomli_w.dumps({'auth': {'keys': [fields]}})}"
        "# or as a variable, also in .env beside docker-compose.yml (more keys: one list):\n"
        f"# STRATA_AUTH__KEYS='{line}'"
    )
