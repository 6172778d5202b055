"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="a TOML file; else STRATA_CONFIG, ./strata.toml")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="a running service, else the stores are opened here")
]
UserOption = Annotated[
    str | None, typer.Option("--user", help="whose memory (with a key: its own)")
]
TenantOption = Annotated[
    str | None, typer.Option("--tenant", help="of the user, when the stores are opened here")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="STRATA_KEY", help="for a service with auth.mode = keys"),
]
