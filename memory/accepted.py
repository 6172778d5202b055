"""A question, and what it is once it is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory.config import BudgetConfig
from memory.models import Recalled, RecallScope, Session, Turn, User, session_key


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question of one user in one session."""

    user: User
    session_id: str
    question: str
    recall: RecallScope = "user"
    system: str = ""
    budget: BudgetConfig | None = None
    metadata: dict[str, Any] | None = None
    recall_deadline: float | None = None
    # A client's own name for this request, and what tells it from another by the same name.
    idempotency_key: str | None = None
    body_hash: str = ""

    @property
    def key(self) -> str:
        return session_key(self.user.key, self.session_id)


@dataclass(kw_only=True)
class Accepted:
    """A durable question. Must be ended by `finish` (or `abandon`), or its session stays busy."""

    ask: Ask
    turn: Turn
    session: Session
    turns: Sequence[Turn]
    recalled: asyncio.Task[Recalled] | None
    ended: bool = False
    stored: bool = False
    receipt_stored: bool = False

    def let_go(self) -> None:
        """Hold no longer what the context is made of: nobody will ask for it again."""
        self.turns = ()
        if self.recalled is not None:
            self.recalled.cancel()
            self.recalled = None
