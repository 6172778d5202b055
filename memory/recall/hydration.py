"""What the index found is read again from the store: owner, expiry and text come from there.

A stale or hostile index can cost recall; it cannot show another user's text, nor bring back
what was erased or has expired.
"""

from __future__ import annotations

from collections.abc import Iterable

from memory.config import TtlConfig
from memory.ids import MessageId, TurnId, UserKey
from memory.models import Message, Recalled, Recollection, Turn, now, turn_of
from memory.recall.fusion import Candidate
from memory.recall.search import Ranked
from memory.sessions.visibility import in_living_sessions
from memory.stores.base import Store
from memory.text.passages import cut

# How many tokens of candidates are read for each token of budget: some are refused, some do not
# fit where a shorter one does.
SLACK = 1.5
LINE_TOKENS = 4
MAX_TURNS = 400


async def hydrate(
    ranked: Ranked,
    *,
    store: Store,
    user: UserKey,
    budget_tokens: int,
    ttl: TtlConfig,
    in_prompt: frozenset[MessageId] = frozenset(),
) -> Recalled:
    """The best candidates as recollections with the store's own text, without the messages that
    are `in_prompt` anyway. Raises StoreUnavailable."""
    outside = [c for c in ranked.candidates if c.payload["message"] not in in_prompt]
    chosen = _enough(outside, budget_tokens * SLACK)
    moment = now()
    ids = list({turn_of(c.payload["message"]): None for c in chosen})
    turns = await store.turns.get_many(ids, now=moment) if ids else {}
    if ttl.memory == "session":
        living = await in_living_sessions(
            turns.values(), sessions=store.sessions, moment=moment, default_ttl=ttl.session
        )
        turns = {turn.id: turn for turn in living}
    items, gone = [], 0
    for candidate in chosen:
        turn = turns.get(turn_of(candidate.payload["message"]))
        message = _message(turn, candidate, user)
        if turn is None or message is None:
            gone += 1
            continue
        items.append(
            Recollection(
                message=message,
                session_id=turn.session_id,
                passage=candidate.payload["passage"],
                score=candidate.score,
                dense_rank=candidate.dense_rank,
                lexical_rank=candidate.lexical_rank,
            )
        )
    in_window = len(in_prompt & {c.payload["message"] for c in ranked.candidates})
    return Recalled(tuple(items), gone, in_window, ranked.degraded)


def _message(turn: Turn | None, candidate: Candidate, user: UserKey) -> Message | None:
    if turn is None or turn.user_key != user:
        return None
    for message in turn.messages:
        if message.id == candidate.payload["message"]:
            fits = 0 <= candidate.payload["passage"] < len(cut(message.content))
            return message if message.content and fits else None
    return None


def _enough(candidates: Iterable[Candidate], tokens: float) -> list[Candidate]:
    """The best candidates whose texts fill `tokens`."""
    chosen: list[Candidate] = []
    turns: set[TurnId] = set()
    filled = 0.0
    for candidate in candidates:
        turns.add(turn_of(candidate.payload["message"]))
        if filled > tokens or len(turns) > MAX_TURNS:
            break
        chosen.append(candidate)
        filled += candidate.payload["tokens"] + LINE_TOKENS
    return chosen
