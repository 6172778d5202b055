"""A question that is durable, until its answer is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memory.ask import Ask
from memory.composing import Draft
from memory.models import Turn


@dataclass(kw_only=True, slots=True)
class Accepted:
    """Must be ended by `finish` (or `abandon`), or its session stays busy."""

    ask: Ask
    turn: Turn
    session_ends: datetime  # unless more comes
    draft: Draft | None
    ended: bool = False
    stored: bool = False
    receipt_stored: bool = False

    def let_go(self) -> None:
        """Hold no longer what the context is made of: nobody will ask for it again."""
        if self.draft is not None:
            self.draft.cancel()
            self.draft = None
