"""The command line: serve, chat, check, config, import, export, token. `strata --help`."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from memory.errors import ConfigError, StrataError
from service.auth.keys import (
    DEFAULT_USER,
    TENANT,
    AuthKey,
    Keyring,
    digest_of,
    new_key,
    owner,
    to_paste,
)
from service.config.loading import forget_foreign_variables, load_settings
from service.config.settings import Settings
from service.config.shown import as_toml
from service.observability.logging import configure_logging

SETTLE_SECONDS = 10.0

# A crash shows no variables: a key could be one.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_show_locals=False
)

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

_KEYS = {
    "store": "store.url",
    "index": "index.url",
    "embedding": "embedding.provider, embedding.path, embedding.base_url",
    "model": "model.base_url, model.api_key",
}


class FileFormat(StrEnum):
    lines = "lines"
    conversations = "conversations"


def main() -> None:
    forget_foreign_variables()
    app()


def _settings(path: Path | None) -> Settings:
    try:
        return load_settings(path)
    except ConfigError as error:
        _fail(error)


def _fail(error: Exception | str) -> NoReturn:
    print(f"strata: {error}", file=sys.stderr)
    raise typer.Exit(1)


def _run(
    work: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(work)
    except StrataError as error:
        _fail(error)
    except OSError as error:
        _fail(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="server.host")] = None,
    port: Annotated[int | None, typer.Option(help="server.port; 0 takes a free one")] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve over HTTP. Works without any configuration."""
    settings = _settings(config)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        settings = settings.serving(**given)
    except ConfigError as error:
        _fail(error)
    configure_logging(settings.server.log_level)
    if settings.server.workers > 1 and worker is None:
        from service.process.workers import Workers

        _run(Workers(settings, config=config).run())
        return
    from service.process.server import new_event_loop
    from service.process.server import serve as serve_
    from service.process.workers import Parent

    _run(serve_(settings, parent=Parent(worker) if worker else None), new_event_loop)


@app.command()
def chat(
    session: Annotated[str, typer.Argument(help="the session's id")] = "terminal",
    config: ConfigOption = None,
    url: UrlOption = None,
    user: UserOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
) -> None:
    """Chat in the terminal; /context shows the receipt of the last answer."""
    settings = _settings(config)
    configure_logging("error")
    from service.cli.chat import chat as chat_
    from service.cli.clients import connect
    from service.http.request import check_session_id

    async def work() -> None:
        check_session_id(session)
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            await chat_(client, session, Console())
            # What was said is stored; that it can be found at once next time is worth a moment.
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await client.settled()

    _run(work())


@app.command()
def check(config: ConfigOption = None, url: UrlOption = None) -> None:
    """Validate the configuration and reach every configured part."""
    settings = _settings(config)
    configure_logging("error")
    from service.cli.clients import connect

    async def work() -> None:
        async with connect(settings, url=url) as client:
            ready = await client.ready()
        bad = []
        for name, part in ready.items():
            if isinstance(part, dict):
                print(f"{name:<11} " + "  ".join(f"{k}={v}" for k, v in part.items()))
                if part["status"] not in ("ok", "off", "loading"):
                    bad.append(f"{name} (see {_KEYS.get(name, name)})")
        if bad:
            _fail(f"not working: {', '.join(bad)}")
        print("everything works")

    _run(work())


@app.command("config")
def show_config(config: ConfigOption = None) -> None:
    """Print the effective configuration as TOML, secrets masked."""
    settings = _settings(config)
    print(as_toml(settings))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    config: ConfigOption = None,
    url: UrlOption = None,
    user: Annotated[
        str | None, typer.Option("--user", help="whose memory (default: local, or the file's)")
    ] = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
    format_: Annotated[FileFormat, typer.Option("--format")] = FileFormat.lines,
) -> None:
    """Import NDJSON lines, or conversations with labelled evidence. Resumable by id."""
    settings = _settings(config)
    configure_logging("error")
    from service.cli.clients import connect
    from service.cli.imports import import_batches, read

    async def work() -> None:
        console = Console(stderr=True)
        whose = owner(settings.auth, user=user, tenant=tenant, key=key)
        named = user or (key and Keyring(settings.auth.keys).find(key))
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            found = read(file, format_=format_.value, user=whose.name if named else None)
            done = await import_batches(found, client, console, max_bytes=settings.limits.message)
            print(f"{done.accepted} messages imported, {done.duplicates} were there already")
            await client.settled()

    _run(work())


@app.command("export")
def export(
    user: Annotated[str | None, typer.Argument(help="whose memory (with a key: its own)")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="else standard output")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
) -> None:
    """Export all that a user said and was told as NDJSON lines, which `import` reads."""
    settings = _settings(config)
    configure_logging("error")
    from service.cli.clients import connect
    from service.cli.exports import export_lines, written

    if not user and not key:
        _fail("say whose memory: strata export USER")

    async def work() -> None:
        console = Console(stderr=True)
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            with written(output) as file:
                done = await export_lines(client, file.write, console)
        without = f", {done.skipped} without text left out" if done.skipped else ""
        said = f"{done.messages} messages of {done.sessions} sessions exported{without}"
        console.print(said, highlight=False, soft_wrap=True)

    _run(work())


@app.command()
def token(
    key: Annotated[bool, typer.Option("--key", help="make a key for auth.mode = keys")] = False,
    id_: Annotated[str | None, typer.Option("--id", help="its name in logs")] = None,
    tenant: Annotated[str, typer.Option(help="of the user")] = TENANT,
    user: Annotated[str, typer.Option(help="who speaks with it")] = DEFAULT_USER,
) -> None:
    """Print a fresh key, once, and what to configure for it. Nothing is stored.

    Tenant and user are those of local mode unless given, so that its memories stay reachable.
    """
    if not key:
        _fail("say what to make: strata token --key")
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
        _fail(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}")
    print(made)
    print(to_paste(entry))
