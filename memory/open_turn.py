"""A question that is durable, until its answer is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memory.context.builder import ContextDraft
from memory.models import Turn
from memory.turn_request import TurnRequest


@dataclass(kw_only=True, slots=True)
class OpenTurn:
    """Must be ended by `finish` (or `abandon`), or its session stays busy."""

    ask: TurnRequest
    turn: Turn
    session_ends: datetime  # unless more comes
    draft: ContextDraft | None
    ended: bool = False
    stored: bool = False
    receipt_stored: bool = False

    def let_go(self) -> None:
        """Hold no longer what the context is made of: nobody will ask for it again."""
        if self.draft is not None:
            self.draft.cancel()
            self.draft = None
