"""Everything the library raises on purpose.

StrataError
├── ConfigError               a setting is wrong; the message names it and the fix
├── InvalidInput              the caller's data is wrong; `field` names where
├── BudgetExceeded            system text and question alone do not fit the budget
├── NotFound                  no such thing, or another user's (never told apart)
├── SessionBusy               the session's running turn did not end in time
├── KeyReused                 an idempotency key came again with another request
├── TurnRunning               the turn of this idempotency key still runs
├── TurnSuperseded            it failed, and the session has gone on without it
├── Answered                  it has ended; `turn` holds its answer
├── TooManyWaiting            as many wait for this session as may
├── Stopping                  no more turns are taken: the process is about to end
├── TurnLost                  a late write: the turn was taken over, erased or is finished
├── TurnEnded                 the caller has ended this turn itself, or let its context go
├── StoreUnavailable          the store did not answer
├── IndexUnavailable          the vector index did not answer
│   └── EraseUnfinished       … while something was erased: what it holds goes later
└── EmbeddingUnavailable      no dense vectors at present
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memory.models import Turn

_LOGGED_CHARACTERS = 200


class StrataError(Exception):
    """Base of the tree."""


class ConfigError(StrataError):
    """A setting is wrong. `key` is its dotted name."""

    def __init__(self, key: str, problem: str, fix: str = "") -> None:
        self.key = key
        super().__init__(f"{key}: {problem}" + (f" ({fix})" if fix else ""))


class InvalidInput(StrataError):
    """The caller's data is wrong. `done` says how many items were kept before the fault."""

    def __init__(self, field: str, problem: str, *, done: int | None = None) -> None:
        self.field = field
        self.done = done
        super().__init__(f"{field}: {problem}")


class BudgetExceeded(StrataError):
    def __init__(self, *, needed_tokens: int, budget_tokens: int) -> None:
        self.needed_tokens = needed_tokens
        self.budget_tokens = budget_tokens
        super().__init__(
            f"system text and question need {needed_tokens} tokens, the budget is "
            f"{budget_tokens}: shorten them or raise budget.context_tokens"
        )


class NotFound(StrataError):
    pass


class SessionBusy(StrataError):
    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__("another turn of this session is running")


class KeyReused(StrataError):
    def __init__(self) -> None:
        super().__init__(
            "this idempotency key was used with another request within 24 hours: repeat that "
            "request unchanged, or take a new key"
        )


class TurnRunning(StrataError):
    def __init__(self, turn_id: str, retry_after_seconds: float) -> None:
        self.turn_id = turn_id
        self.retry_after_seconds = retry_after_seconds
        super().__init__("the turn of this idempotency key is still running")


class TurnSuperseded(StrataError):
    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        super().__init__(
            "the turn of this idempotency key did not succeed and its session has gone on: "
            "ask again with a new key"
        )


class Answered(StrataError):
    """Not a fault: the turn of this idempotency key has its answer already."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        super().__init__("the turn of this idempotency key has its answer already")


class TooManyWaiting(StrataError):
    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__("as many turns wait for this session as may (limits.waiting_per_session)")


class Stopping(StrataError):
    pass


class TurnLost(StrataError):
    """The turn is no longer this writer's: `erased`, or else taken over by another."""

    def __init__(self, *, erased: bool) -> None:
        self.erased = erased
        super().__init__("the turn was erased" if erased else "the turn was taken over")


class TurnEnded(StrataError):
    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        super().__init__("the turn has ended (or its context was released): begin another one")


class StoreUnavailable(StrataError):
    pass


class IndexUnavailable(StrataError):
    pass


class EraseUnfinished(IndexUnavailable):
    """The store holds nothing of it any more; the index follows by itself."""

    advice = (
        "it is erased from the store; what the index holds of it (no text) goes as soon as"
        " the index answers: nothing is left to do"
    )

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; {self.advice}")


class EmbeddingUnavailable(StrataError):
    pass


def reason(error: BaseException) -> str:
    """What a log may hold of its text: another's than ours may quote what a user said."""
    return str(error)[:_LOGGED_CHARACTERS] if isinstance(error, StrataError) else ""
