"""`strata token`."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer
from pydantic import ValidationError

from service.auth.keys import DEFAULT_USER, TENANT, AuthKey, digest_of, new_key, to_paste
from service.cli.running import fail


def token(
    key: Annotated[bool, typer.Option("--key", help="make a key for auth.mode = keys")] = False,
    id_: Annotated[str | None, typer.Option("--id", help="its name in logs")] = None,
    tenant: Annotated[str, typer.Option(help="of the user")] = TENANT,
    user: Annotated[str, typer.Option(help="whose memory the key opens")] = DEFAULT_USER,
) -> None:
    """Print a fresh key, once, and what to configure for it. Nothing is stored.

    Tenant and user are those of local mode unless given, so that its memories stay reachable.
    """
    if not key:
        fail("say what to make: strata token --key")
    made = new_key()
    try:
        entry = AuthKey.model_validate(
            {
                "id": id_ or f"key-{secrets.token_hex(3)}",
                "sha256": digest_of(made),
                "tenant": tenant,
                "user": user,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fail(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}")
    print(made)
    print(to_paste(entry))
