"""`strata import`: a file into memory. Messages with ids can be imported again: none doubles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.progress import Progress

from memory.errors import InvalidInput
from memory.interchange.batch import Batch
from memory.interchange.conversations import batches, load_conversations
from memory.interchange.ndjson import read_lines
from memory.log.transitions import Incoming
from service.cli.clients.base import Client
from service.http.bodies import check_message
from service.http.problems import Problem
from service.http.request import check_session_id

Format = Literal["lines", "conversations"]


class Imported(NamedTuple):
    accepted: int
    duplicates: int


def read(path: Path, *, format_: Format, user: str | None) -> Iterator[Batch]:
    """The file as batches. Raises InvalidInput naming the place."""
    if format_ == "lines":
        return read_lines(path, user=user or "local")
    conversations = load_conversations(path)
    return (batch for c in conversations for batch in batches(c, user=user))


async def import_batches(
    found: Iterable[Batch], client: Client, console: Console, *, max_bytes: int
) -> Imported:
    """Record batch by batch. After an error what was recorded stays; a new import goes on."""
    accepted = duplicates = 0
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("messages", total=None)
        for number, batch in enumerate(found, 1):
            sound, error = _sound(batch, max_bytes)
            if sound:
                new, known = await client.record(batch.user, batch.session_id, sound)
                accepted, duplicates = accepted + new, duplicates + known
            if error is not None:
                raise error
            progress.update(task, completed=accepted + duplicates)
            if not console.is_terminal and number % 50 == 0:
                console.print(f"{accepted + duplicates} messages", highlight=False)
    return Imported(accepted, duplicates)


def _sound(batch: Batch, max_bytes: int) -> tuple[list[Incoming], InvalidInput | None]:
    """The messages before the first bad one, and what is wrong with that."""
    for index, message in enumerate(batch.messages):
        try:
            check_session_id(batch.session_id)
            check_message("", message, max_bytes=max_bytes)
        except (InvalidInput, Problem) as error:
            in_session = f"{batch.place}, message {index + 1}"
            where = f"line {batch.lines[index]}" if batch.lines else in_session
            return batch.messages[:index], InvalidInput(where, str(error))
    return batch.messages, None
