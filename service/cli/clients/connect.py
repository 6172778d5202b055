"""Chooses the client: a service at an address, the `serve` that runs here, or the stores."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from memory.errors import InvalidInput
from memory.stores.sqlite.lock import is_locked
from service.auth.keys import NAME, Keyring, owner
from service.cli.clients.base import Client, RemoteError
from service.cli.clients.http import HttpClient
from service.cli.clients.local import LocalClient
from service.config.settings import Settings
from service.process.server import serve_file
from service.process.workers import http_url
from service.services import open_services

# An address to listen on that is none to connect to, and the one that reaches it.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@asynccontextmanager
async def connect(
    settings: Settings,
    *,
    url: str | None,
    user: str | None = None,
    tenant: str | None = None,
    key: str | None = None,
) -> AsyncIterator[Client]:
    """HTTP when `url` is given or a running `serve` holds the data folder, else the stores.

    Raises InvalidInput for a user, tenant and key that do not go together.
    """
    whose = owner(settings.auth, user=user, tenant=tenant, key=key)
    running = None if url else running_url(settings)
    target = url or running
    if target is None:
        if key and settings.auth.mode == "keys" and not Keyring(settings.auth.keys).find(key):
            raise InvalidInput("--key", "is not one of auth.keys")
        async with open_services(settings) as services:
            yield LocalClient(services, whose)
        return
    if tenant is not None and not key:
        raise InvalidInput("--tenant", f"{target} takes the tenant from the key: give --key")
    if key and not NAME.match(key):
        raise InvalidInput("--key", "is not one: a key is visible ASCII characters")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if running and settings.server.allowed_hosts:
        headers["Host"] = settings.server.allowed_hosts[0]
    timeout = httpx.Timeout(10.0, read=settings.model.turn_timeout)
    async with httpx.AsyncClient(
        base_url=target, headers=headers, timeout=timeout, trust_env=False
    ) as client:
        try:
            yield HttpClient(client, whose.name, with_key=bool(key))
        except httpx.HTTPError as error:
            raise RemoteError(f"{target}: {type(error).__name__}: {error}") from error


def running_url(settings: Settings) -> str | None:
    """The address of the `serve` that holds this data folder; None when no process does."""
    path = serve_file(settings)
    if path is None or not path.exists():
        return None
    if not is_locked(path.parent):
        return None  # a crash left the file
    address = json.loads(path.read_text())
    host = _EVERYWHERE.get(address["host"], address["host"])
    return http_url(host, address["port"])
