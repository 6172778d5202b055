"""Messages as NDJSON: what `strata export` writes and `strata import` reads."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from memory.errors import InvalidInput
from memory.interchange.batch import BATCH, Batch, aware
from memory.log.transitions import Incoming

MAX_LINE_BYTES = 1_000_000


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message. `id` is the client's own: what has it already is not recorded again."""

    session_id: str
    role: str
    content: str
    created_at: datetime | None = None
    speaker: str | None = None
    id: str | None = None

    def incoming(self) -> Incoming:
        """Raises InvalidInput for a time that is none."""
        return Incoming(
            role=self.role,
            content=self.content,
            created_at=aware(self.created_at),
            speaker=self.speaker,
            id=self.id,
        )


def read_lines(path: Path, *, user: str) -> Iterator[Batch]:
    """The file as batches, read line by line. Raises InvalidInput naming the line, after it has
    given what stands before it."""
    session = ""
    messages: list[Incoming] = []
    lines: list[int] = []

    def batch() -> Batch:
        return Batch(user, session, messages, f"line {lines[0]}", tuple(lines))

    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not raw.strip():
                continue
            try:
                line = _decoded(raw)
                message = line.incoming()
            except (ValueError, InvalidInput) as error:  # msgspec's and Unicode's are ValueErrors
                if messages:
                    yield batch()
                raise InvalidInput(f"line {number}", str(error)) from error
            if messages and (line.session_id != session or len(messages) >= BATCH):
                yield batch()
                messages, lines = [], []
            session = line.session_id
            lines.append(number)
            messages.append(message)
    if messages:
        yield batch()


def _decoded(raw: bytes) -> Line:
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    return _decoder.decode(raw)


_decoder = msgspec.json.Decoder(Line)
