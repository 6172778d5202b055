"""`strata chat`, `strata import` and `strata export`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.auth.keys import Keyring, owner
from service.cli.options import ConfigOption, KeyOption, TenantOption, UrlOption, UserOption
from service.cli.running import fail, run, settings_of
from service.observability.logging import configure_logging

SETTLE_SECONDS = 10.0


class FileFormat(StrEnum):
    lines = "lines"
    conversations = "conversations"


def chat(
    session: Annotated[str, typer.Argument(help="the session's id")] = "terminal",
    config: ConfigOption = None,
    url: UrlOption = None,
    user: UserOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
) -> None:
    """Chat in the terminal; /context shows the receipt of the last answer."""
    settings = settings_of(config)
    configure_logging("error")
    from service.cli.chat import chat as chat_
    from service.cli.clients.connect import connect
    from service.http.request import check_session_id

    async def work() -> None:
        check_session_id(session)
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            await chat_(client, session, Console())
            # What was said is stored; that it can be found at once next time is worth a moment.
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await client.caught_up()

    run(work())


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
    settings = settings_of(config)
    configure_logging("error")
    from service.cli.clients.connect import connect
    from service.cli.imports import import_batches, read

    async def work() -> None:
        console = Console(stderr=True)
        whose = owner(settings.auth, user=user, tenant=tenant, key=key)
        named = user or (key and Keyring(settings.auth.keys).find(key))
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            found = read(file, format_=format_.value, user=whose.name if named else None)
            done = await import_batches(found, client, console, max_bytes=settings.limits.message)
            print(f"{done.accepted} messages imported, {done.duplicates} were there already")
            await client.caught_up()

    run(work())


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
    """Export a user's messages and their answers as NDJSON lines, which `import` reads."""
    settings = settings_of(config)
    configure_logging("error")
    from service.cli.clients.connect import connect
    from service.cli.exports import export_lines, written

    if not user and not key:
        fail("say whose memory: strata export USER")

    async def work() -> None:
        console = Console(stderr=True)
        async with connect(settings, url=url, user=user, tenant=tenant, key=key) as client:
            with written(output) as file:
                done = await export_lines(client, file.write, console)
        without = f", {done.skipped} without text left out" if done.skipped else ""
        said = f"{done.messages} messages of {done.sessions} sessions exported{without}"
        console.print(said, highlight=False, soft_wrap=True)

    run(work())
