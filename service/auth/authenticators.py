"""Who is asking, and whether at all: on loopback by a header (local mode), or by a key.

`refusal` stands in the outermost layer, before anything is parsed; `user` is what routes get.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
from litestar import Request

from memory import User
from service.auth.keys import DEFAULT_USER, NAME, TENANT, AuthKey, find_key
from service.config.settings import Settings
from service.http.problems import Problem

log = structlog.get_logger("strata.auth")

_LOCAL_HOST = re.compile(r"\A(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?\Z", re.IGNORECASE)
_HOST = re.compile(r"\A(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?\Z", re.IGNORECASE)
_BEARER = re.compile(r"\Abearer +([A-Za-z0-9._~+/-]{1,512}=*)\Z", re.IGNORECASE)
# Probes and Prometheus ask without a user's key, and what they get names nobody.
_OPEN = re.compile(r"\A(/health/[a-z]+|/metrics|/schema(/.*)?)\Z")
_PROBED = re.compile(r"\A(/health/.*|/metrics)\Z")
_SCOPE = "chat"
_NO_KEY = "send a valid key as Authorization: Bearer <key>"


class Auth(Protocol):
    def refusal(self, scope: Mapping[str, Any]) -> Problem | None:
        """Why a request with this ASGI scope is turned away, if it is."""
        ...

    async def user(self, request: Request[Any, Any, Any]) -> User:
        """The user of this request. Raises Problem."""
        ...


class LocalAuth:
    """Local mode is only local: a foreign Host (DNS rebinding) or Origin is refused. One tenant;
    the user is the header `X-User-Id`, or the local one."""

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
    """Tenant and user come from the entry of the key in `Authorization: Bearer`, from nothing
    else. Everything but health, metrics and the schema needs a key, unknown paths included.

    A foreign Origin gets no CORS headers: that is all a browser needs to keep an answer from it.
    """

    def __init__(self, keys: Sequence[AuthKey], *, allowed_hosts: Collection[str] = ()) -> None:
        self._keys = tuple(keys)
        self._allowed_hosts = frozenset(allowed_hosts)
        for entry in keys:
            if entry.expired(datetime.now(UTC)):
                log.warning("auth.key_expired", key=entry.id)

    def refusal(self, scope: Mapping[str, Any]) -> Problem | None:
        if self._allowed_hosts and not self._is_allowed_host(scope):
            return Problem(421, "this Host is not one of server.allowed_hosts")
        if _OPEN.match(scope["path"]):
            return None
        entry = self._entry(_values(scope, b"authorization"))
        if entry is None:
            # One answer for all: what was wrong with a key is nobody's business.
            return Problem(401, _NO_KEY)
        state = scope["state"]
        state["who"] = {"key": entry.id}
        if _SCOPE not in entry.scopes:
            return Problem(403, f"this key is not for this: it lacks the scope {_SCOPE}")
        state["user"] = User(entry.tenant, entry.user)
        return None

    def _is_allowed_host(self, scope: Mapping[str, Any]) -> bool:
        if _PROBED.match(scope["path"]):
            return True  # probes ask by address, not by name
        hosts = _values(scope, b"host")
        found = _HOST.match(hosts[0]) if len(hosts) == 1 else None
        return found is not None and found[1].lower() in self._allowed_hosts

    def _entry(self, headers: Sequence[str]) -> AuthKey | None:
        given = _BEARER.match(headers[0]) if len(headers) == 1 else None
        entry = find_key(given[1], self._keys) if given else None
        return None if entry is None or entry.expired(datetime.now(UTC)) else entry

    async def user(self, request: Request[Any, Any, Any]) -> User:
        user = request.scope["state"].get("user")
        if not isinstance(user, User):
            raise Problem(401, _NO_KEY)
        request.scope["state"]["who"]["user"] = user.key[:12]
        return user


def make_auth(settings: Settings) -> Auth:
    if settings.auth.mode == "local":
        return LocalAuth()
    return KeyAuth(settings.auth.keys, allowed_hosts=settings.server.allowed_hosts)


def _values(scope: Mapping[str, Any], header: bytes) -> list[str]:
    """Every value of a header, however often it was sent."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def _is_local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and bool(_LOCAL_HOST.match(parts.netloc))
    except ValueError:
        return False
