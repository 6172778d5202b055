"""The text of an answer as it comes, piece by piece, and its events for readers at any place."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from service.streaming.events import token_event

# A reader that is more pieces behind gets them in one event. Older ones are put together: a string
# of a few letters takes ten times their room.
BEHIND = 16
# Code points of one event for a reader that is behind those: what is written for a client that
# does not read must not grow with the answer.
PAGE = 1024


class AnswerBuffer:
    __slots__ = ("_ends", "_joined", "_pages", "_recent", "_run", "length")

    def __init__(self, run: str) -> None:
        self._run = run
        # Pages, and what is not yet one. No text is ever made anew for some letters more: answers
        # that grow side by side would leave the heap full of holes.
        self._joined: list[str] = []
        self._ends = array("I")  # code points up to and with each of them
        self._pages = 0
        self._recent: list[str] = []  # the pieces after them
        self.length = 0  # in code points

    def add(self, text: str) -> None:
        """One more piece; it must not be empty."""
        self.length += len(text)
        self._recent.append(text)
        if len(self._recent) == 2 * BEHIND:
            self._join("".join(self._recent[:BEHIND]))
            del self._recent[:BEHIND]

    def close(self) -> str:
        """The whole text, which is kept once from now on. Nothing may be added any more."""
        whole = self.text
        self._joined, self._recent, self._pages = [], [], 0
        self._ends = array("I")
        self._join(whole)
        return whole

    def _join(self, text: str) -> None:
        end = self._joined_length + len(text)
        paged = self._ends[self._pages - 1] if self._pages else 0
        if end - paged >= PAGE:
            text = "".join((*self._joined[self._pages :], text))
            del self._joined[self._pages :], self._ends[self._pages :]
            self._pages += 1
        self._joined.append(text)
        self._ends.append(end)

    @property
    def _joined_length(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def text(self) -> str:
        return "".join((*self._joined, *self._recent))

    def events(self, at: int) -> tuple[list[bytes], int]:
        """The next events of the text from code point `at` on, which must be before its end; and
        the code point that they reach, which is its end unless `at` is far behind."""
        texts = [self._page(at)] if at < self._joined_length else self._since(at)
        events = []
        for text in texts:
            at += len(text)
            events.append(token_event(self._run, at, text))
        return events, at

    def _page(self, at: int) -> str:
        n = bisect_right(self._ends, at)
        begin = len(self._joined[n]) - (self._ends[n] - at)
        parts = [self._joined[n][begin : begin + PAGE]]
        length = len(parts[0])
        for text in self._joined[n + 1 :]:
            if length >= PAGE:
                break
            parts.append(text)
            length += len(text)
        return "".join(parts)[:PAGE]

    def _since(self, at: int) -> list[str]:
        texts, start = [], self.length
        for text in reversed(self._recent):
            if start <= at:
                break
            texts.append(text)
            start -= len(text)
        texts.reverse()
        texts[0] = texts[0][at - start :]
        return texts if len(texts) <= BEHIND else ["".join(texts)]
