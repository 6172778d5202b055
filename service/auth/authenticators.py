"""Which user sends a request, if any may: on loopback by a header (local mode), or by a key.

The outermost layer asks `refusal` before anything is parsed; routes ask `user`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
from litestar import Request

from memory import User
from memory.config import ConfigSource
from service.auth.keys import DEFAULT_USER, NAME, TENANT, AuthKey, Keyring
from service.config.settings import Settings
from service.http.problems import Problem

log = structlog.get_logger("strata.auth")

_LOCAL_HOST = re.compile(r"\A(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?\Z", re.IGNORECASE)
_HOST = re.compile(r"\A(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?\Z", re.IGNORECASE)
_BEARER = re.compile(r"\Abearer +([A-Za-z0-9._~+/-]{1,512}=*)\Z", re.IGNORECASE)
# Probes and Prometheus have no user's key, and no answer to them names a user.
_OPEN = re.compile(r"\A(/health/[a-z]+|/metrics|/schema(/.*)?)\Z")
_PROBED = re.compile(r"\A(/health/.*|/metrics)\Z")
_SCOPE = "chat"
_NO_KEY = "send a valid key as Authorization: Bearer <key>"


class Auth(Protocol):
    """Turns requests away, and names the user of those that pass."""

    def refusal(self, scope: Mapping[str, Any]) -> Problem | None:
        """Why the request with this ASGI scope is turned away; None when it may pass."""
        ...

    async def user(self, request: Request[Any, Any, Any]) -> User:
        """The user of a request that passed. Raises Problem."""
        ...


class LocalAuth:
    """Local mode serves this machine only: a foreign Host (DNS rebinding) or Origin is refused.
    There is one tenant; the user is the header `X-User-Id`, or `local` without it."""

    def refusal(self, scope: Mapping[str, Any]) -> Problem | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not _LOCAL_HOST.match(hosts[0]):
            return Problem(421, "in local mode Host must be localhost, 127.0.0.1 or [::1]")
        if not all(_is_local_origin(origin) for origin in origins):
            return Problem(403, "in local mode requests from other origins are refused")
        return None

    async def user(self, request: Request[Any, Any, Any]) -> User:
        """400 for an `X-User-Id` that is not plain visible text."""
        name = request.headers.get("x-user-id", DEFAULT_USER)
        if not NAME.match(name):
            raise Problem(400, "X-User-Id: 1 to 256 visible ASCII characters")
        user = User(TENANT, name)
        request.scope["state"]["who"] = {"user": user.key[:12]}
        return user


class KeyAuth:
    """The key in `Authorization: Bearer` decides tenant and user, and nothing else does. Every
    path but health, metrics and the schema needs a key, unknown paths included.

    A foreign Origin gets no CORS headers, so a browser keeps the answer from that origin.
    """

    def __init__(self, config: ConfigSource[Settings]) -> None:
        self._config = config
        self._take(config.current.auth.keys)

    def _take(self, keys: tuple[AuthKey, ...]) -> None:
        self._keys = keys
        self._keyring = Keyring(keys)
        for entry in keys:
            if entry.expired(datetime.now(UTC)):
                log.warning("auth.key_expired", key=entry.id)

    def refusal(self, scope: Mapping[str, Any]) -> Problem | None:
        settings = self._config.current
        if settings.auth.keys is not self._keys:
            self._take(settings.auth.keys)
        if not _is_allowed_host(scope, settings.server.allowed_hosts):
            return Problem(421, "this Host is not one of server.allowed_hosts")
        if _OPEN.match(scope["path"]):
            return None
        entry = self._entry(_values(scope, b"authorization"))
        if entry is None:
            # One answer for every fault of a key: details would help someone who guesses.
            return Problem(401, _NO_KEY)
        state = scope["state"]
        state["who"] = {"key": entry.id}
        if _SCOPE not in entry.scopes:
            return Problem(403, f"this key is not for this: it lacks the scope {_SCOPE}")
        state["user"] = User(entry.tenant, entry.user)
        return None

    def _entry(self, headers: Sequence[str]) -> AuthKey | None:
        given = _BEARER.match(headers[0]) if len(headers) == 1 else None
        entry = self._keyring.find(given[1]) if given else None
        return None if entry is None or entry.expired(datetime.now(UTC)) else entry

    async def user(self, request: Request[Any, Any, Any]) -> User:
        user = request.scope["state"].get("user")
        if not isinstance(user, User):
            raise Problem(401, _NO_KEY)
        request.scope["state"]["who"]["user"] = user.key[:12]
        return user


def make_auth(config: ConfigSource[Settings]) -> Auth:
    """The authenticator of `auth.mode`, which a restart alone changes."""
    return LocalAuth() if config.current.auth.mode == "local" else KeyAuth(config)


def _is_allowed_host(scope: Mapping[str, Any], allowed: Sequence[str]) -> bool:
    if not allowed or _PROBED.match(scope["path"]):
        return True  # probes ask by address, not by name
    hosts = _values(scope, b"host")
    found = _HOST.match(hosts[0]) if len(hosts) == 1 else None
    return found is not None and found[1].lower() in allowed


def _values(scope: Mapping[str, Any], header: bytes) -> list[str]:
    """Every value of a header, however often it was sent."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def _is_local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and bool(_LOCAL_HOST.match(parts.netloc))
    except ValueError:
        return False
