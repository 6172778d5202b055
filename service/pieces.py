"""The text of an answer as it comes, piece by piece, and its events for readers at any place."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from service.events import token_event

# A reader that is so many pieces behind gets them in one event.
BEHIND = 32


class Pieces:
    def __init__(self, run: str) -> None:
        self._run = run
        self._pieces: list[str] = []
        self._ends = array("Q")  # code points up to and with each piece
        self.length = 0  # in code points

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, text: str) -> None:
        """One more piece; it must not be empty."""
        self.length += len(text)
        self._pieces.append(text)
        self._ends.append(self.length)

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def after(self, at: int) -> int:
        """The number of the first piece that goes beyond code point `at`."""
        return bisect_right(self._ends, at)

    def events(self, first: int, at: int) -> list[bytes]:
        """Those of the text from code point `at` on, which is in piece `first` or before it."""
        pieces, ends = self._pieces[first:], self._ends[first:]
        pieces[0] = pieces[0][len(pieces[0]) - (ends[0] - at) :]
        if len(pieces) > BEHIND:
            pieces, ends = ["".join(pieces)], ends[-1:]
        return [token_event(self._run, end, piece) for piece, end in zip(pieces, ends, strict=True)]
