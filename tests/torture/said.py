"""What the clients of the torture say and what came back: the ledger of everything acknowledged.

Every text bears its user, session, tab and number, and the fake model repeats its end: so each
text in a history, a prompt or an answer tells whose it is.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from system.streams import Event

from evals.fake_openai import ECHOED_CHARACTERS

JUST_SECONDS = 0.1
MARKER = re.compile(r"(zq[0-9a-f]{8})-(s\d+)-(t\d+)-(\d{5})")
Outcome = Literal["done", "superseded", "failed", "unknown"]
Phase = Literal["before accepted", "after accepted", "mid-stream", "after done"]


def canary(rng: random.Random) -> str:
    """The name of a user, in everything that user says and in nothing else."""
    return f"zq{rng.getrandbits(32):08x}"


@dataclass
class Attempt:
    """One request for a turn: its events, or its problem, or neither (`broken`)."""

    status: int | None = None
    code: str | None = None
    retryable: bool = False
    replayed: bool = False
    broken: bool = False
    turn_id: str | None = None
    seq: int | None = None
    text: str = ""
    ended: str | None = None
    ended_at: float = 0.0
    message_id: str | None = None
    finish_reason: str | None = None
    used_tokens: int = 0
    budget_tokens: int = 0
    degraded: tuple[str, ...] = ()

    def take(self, event: Event) -> None:
        assert self.ended is None, f"{event.name} after {self.ended}"
        data: dict[str, Any] = event.data
        if event.name == "accepted":
            self.turn_id, self.seq = data["turn_id"], data["seq"]
        elif event.name == "context":
            self.used_tokens, self.budget_tokens = data["used_tokens"], data["budget_tokens"]
            self.degraded = tuple(data["degraded"])
        elif event.name == "token":
            self.text += data["text"]
        else:
            self.ended, self.ended_at = event.name, event.at
            self.message_id, self.finish_reason = data.get("message_id"), data.get("finish_reason")
            self.code, self.retryable = data.get("code"), data.get("retryable", False)


@dataclass
class Said:
    """One message of one tab of one session of one user, and the attempts to say it."""

    user: str
    session: str
    tab: str
    number: int
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome | None = None
    again: Attempt | None = None  # asked once more when all was over

    @property
    def marker(self) -> str:
        return f"{self.user}-{self.session}-{self.tab}-{self.number:05d}"

    @property
    def key(self) -> str:
        return f"key of {self.marker}".replace(" ", "_")

    @property
    def text(self) -> str:
        return f"Please remember what I say: {self.marker} is one two three four five"

    @property
    def accepted(self) -> set[tuple[str, int]]:
        """Turn ids and seqs that were acknowledged: one, or something is wrong."""
        tries = [*self.attempts, *([self.again] if self.again else [])]
        return {(t.turn_id, t.seq) for t in tries if t.turn_id is not None and t.seq is not None}

    @property
    def done(self) -> Attempt | None:
        """The attempt that told of a stored answer."""
        return next((a for a in self.attempts if a.ended == "done"), None)

    @property
    def hits(self) -> int:
        """Attempts that a fault ended: after each of them the model may be called again."""
        return sum(attempt.broken or attempt.ended == "error" for attempt in self.attempts)

    @property
    def phase(self) -> Phase:
        """How far it has come: what a fault at this moment meets."""
        last = self.attempts[-1] if self.attempts else Attempt()
        if self.done:
            return "after done"
        if last.text:
            return "mid-stream"
        return "after accepted" if last.turn_id else "before accepted"


def echo(text: str) -> str:
    """What the fake model answers."""
    return f"You said: {text[-ECHOED_CHARACTERS:]}"


def phases(said: Iterable[Said], *, now: float) -> Counter[Phase]:
    """What a fault at this moment meets: turns under way, and those that were just done."""
    counted: Counter[Phase] = Counter(one.phase for one in said if one.outcome is None)
    counted["after done"] += sum(
        now - one.done.ended_at < JUST_SECONDS for one in said if one.done is not None
    )
    return counted
