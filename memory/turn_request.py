"""One question of one user in one session, and how it is to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory.config import BudgetConfig
from memory.models import RecallScope, User


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRequest:
    """`budget` replaces the configured one; `recall_deadline` (seconds, inf = none) likewise.

    `idempotency_key` names the request within its user for 24 hours; `body_hash` tells it from
    another request of the same name.
    """

    user: User
    session_id: str
    question: str
    recall: RecallScope = "user"
    system: str = ""
    budget: BudgetConfig | None = None
    metadata: dict[str, Any] | None = None
    recall_deadline: float | None = None
    idempotency_key: str | None = None
    body_hash: str = ""
