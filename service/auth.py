"""Who is asking. In local mode, on loopback only: the header `X-User-Id`, or one local user."""

from __future__ import annotations

import re
from typing import Any

from litestar import Request

from memory import User
from service.problems import Problem

TENANT = "local"
DEFAULT_USER = "local"
_USER_ID = re.compile(r"\A[\x21-\x7e]{1,256}\Z")


async def provide_user(request: Request[Any, Any, Any]) -> User:
    """The user of this request. 400 for an `X-User-Id` that is not plain visible text."""
    name = request.headers.get("x-user-id", DEFAULT_USER)
    if not _USER_ID.match(name):
        raise Problem(400, "X-User-Id: 1 to 256 visible ASCII characters")
    user = User(TENANT, name)
    request.scope["state"]["who"] = {"user": user.key[:12]}
    return user
