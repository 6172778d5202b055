"""The text of an answer as it comes, piece by piece, and its events for readers at any place."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from service.events import token_event

# A reader that is so many pieces behind gets them in one event.
BEHIND = 32
# A string of a few letters takes ten times their room, so pieces are soon put together.
RECENT = 64


class Pieces:
    def __init__(self, run: str) -> None:
        self._run = run
        self._whole = ""
        self._recent: list[str] = []  # what comes after it
        self._ends = array("I")  # code points up to and with each piece
        self.length = 0  # in code points

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, text: str) -> None:
        """One more piece; it must not be empty."""
        self.length += len(text)
        self._recent.append(text)
        self._ends.append(self.length)
        if len(self._recent) == RECENT:
            self._whole = self.text
            self._recent.clear()

    @property
    def text(self) -> str:
        return "".join((self._whole, *self._recent))

    def after(self, at: int) -> int:
        """The number of the first piece that goes beyond code point `at`."""
        return bisect_right(self._ends, at)

    def events(self, first: int, at: int) -> list[bytes]:
        """Those of the text from code point `at` on, which is in piece `first` or before it."""
        text, ends = self._from(at), self._ends[first:]
        if len(ends) > BEHIND:
            ends = ends[-1:]
        starts = (at, *ends[:-1])
        return [
            token_event(self._run, end, text[start - at : end - at])
            for start, end in zip(starts, ends, strict=True)
        ]

    def _from(self, at: int) -> str:
        if at < len(self._whole):
            return self.text[at:]
        return "".join(self._recent)[at - len(self._whole) :]
