"""One question of one user in one session, and how it is to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory.config import BudgetConfig
from memory.ids import SessionKey
from memory.models import RecallScope, User, session_key


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
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
    def key(self) -> SessionKey:
        return session_key(self.user.key, self.session_id)
