"""A request whose JSON body is decoded strictly: what cannot be right is a 400 or 415."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import Headers, State
from litestar.exceptions import InternalServerException

from memory import User
from service.http.problems import Problem


class StrictRequest(Request[User, Any, State]):
    @property
    def headers(self) -> Headers:
        """Made anew: what Litestar would keep of them is as much as a whole request."""
        return Headers(self.scope["headers"])

    async def body(self) -> bytes:
        try:
            return await super().body()
        except InternalServerException:  # Litestar's word for a client that left
            raise Problem(400, "the body broke off") from None

    async def json(self) -> Any:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(415, "send the body as application/json")
        try:
            value = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Problem(400, "the body must be a JSON object")
        return value
