"""`strata export`: a user's messages and their answers, as lines that `strata import` reads."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
from rich.console import Console
from rich.progress import Progress

from memory.interchange.ndjson import Line
from memory.models import Message
from service.cli.clients.base import Client

PAGE = 100  # messages at once: this much text is held in memory
_UNFINISHED = ("running", "forgotten")


class Exported(msgspec.Struct, frozen=True):
    """`skipped` counts messages without text: an import could not record them."""

    messages: int
    sessions: int
    skipped: int


class _Line(Line, frozen=True, kw_only=True, omit_defaults=True):
    """Written without what is not set."""


async def export_lines(
    client: Client, write: Callable[[bytes], object], console: Console
) -> Exported:
    """Write every visible message of the client's user, page by page: first the session whose
    last activity is longest ago, each session in its order.

    A message's `id` is the client's own or, where it gave none, Strata's: importing the lines
    elsewhere twice adds nothing the second time, and exporting them there gives the same lines.
    An answer that was cut off is written as far as it came. Answers without text to record
    are left out: failed, forgotten and running ones; so is what arrives in a session while that
    is written.
    """
    messages = sessions = skipped = 0
    with Progress(console=console, disable=not console.is_terminal) as progress:
        known = await _session_ids(client)
        task = progress.add_task("sessions", total=len(known))
        for number, session_id in enumerate(known, 1):
            before = messages
            async for message in _oldest_first(client, session_id):
                if message.status in _UNFINISHED or not message.content.strip():
                    skipped += 1
                    continue
                write(msgspec.json.encode(_line(session_id, message)) + b"\n")
                messages += 1
            sessions += messages > before
            progress.update(task, completed=number)
            if not console.is_terminal and number % 100 == 0:
                console.print(f"{messages} messages", highlight=False)
    return Exported(messages, sessions, skipped)


async def _session_ids(client: Client) -> list[str]:
    """All sessions, the one with the newest activity last. A message moves its session to the
    top of the list while it is read; so the top is read again until it shows nothing new."""
    found: dict[str, None] = {}
    while True:
        fresh: list[str] = []
        cursor = None
        while True:
            page, cursor = await client.sessions(cursor)
            unseen = [session_id for session_id in page if session_id not in found]
            fresh += unseen
            # After the first pass only a session that has moved to the top is unseen.
            if cursor is None or (found and not unseen):
                break
        if not fresh:
            return list(reversed(found))
        found = dict.fromkeys([*fresh, *found])


async def _oldest_first(client: Client, session_id: str) -> AsyncIterator[Message]:
    """A session's messages by `seq`. Pages are read by number from the oldest on, so that no
    more than one is held; a session that is gone by now has none."""
    newest, more = await client.messages(session_id, before=None, limit=PAGE)
    if not more:
        for message in newest:
            yield message
        return
    last = newest[-1].seq
    # Counted after `last` was read, so this is not beyond the first.
    done = last - await client.count(session_id)
    while done < last:
        upto = min(done + PAGE, last)
        page, _ = await client.messages(session_id, before=upto + 1, limit=PAGE)
        for message in page:
            if message.seq > done:
                yield message
        done = upto


def _line(session_id: str, message: Message) -> _Line:
    return _Line(
        session_id=session_id,
        role=message.role,
        content=message.content,
        created_at=message.created_at,
        speaker=message.speaker,
        id=message.client_id or message.id,
    )


@contextmanager
def written(path: Path | None) -> Iterator[IO[bytes]]:
    """A file to write to, readable by its owner only. It takes the name `path` when all is
    written, so a file of that name is always whole. Without a path: the standard output."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():  # a pipe or a device
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f"{path.name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
