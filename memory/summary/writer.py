"""Makes a new summary from turns or segments; nothing is stored here.

Write (a `Summarizer`, else an extract), then check: a statement with names, numbers or dates must
still be there, the newest first, as far as the budget goes. The rest is retired: counted, and
left to recall.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from memory.config import MemoryConfig
from memory.context.assembly import SUMMARY_FENCE_TOKENS
from memory.models import NEVER, Segment, Session, Summary, Turn, now
from memory.summary.extract import extract, lost
from memory.summary.plan import passes
from memory.summary.statements import Statement, parse, render, statements, transcript
from memory.summary.summarizer import Summarizer
from memory.tokens import TokenCounter

_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]m|i am|we['’]re|we are)?\s*(?:very |so )?(?:sorry|afraid|unable|not able)\b"
    r"|(?:i|we)\s+(?:can(?:not|['’]t| not)|won['’]t|will not|must decline)\b|as an ai\b)",
    re.IGNORECASE,
)
TRIES = 2


class Rolled(NamedTuple):
    """A new rolled text. `retired` statements fell out of it in this roll."""

    text: str
    retired: int
    degraded: bool


class SummaryWriter:
    """Without a `summarizer` every text is an extract. Raises nothing: a model that fails is
    replaced by an extract, and the summary says that it is degraded."""

    def __init__(self, *, counter: TokenCounter, summarizer: Summarizer | None) -> None:
        self._counter = counter
        self._summarizer = summarizer

    async def compacted(
        self, session: Session, turns: Sequence[Turn], *, config: MemoryConfig
    ) -> Summary:
        """The session's summary once these turns, the next after it, have gone into it."""
        budget_tokens = _room(config)
        old = session.summary
        text, retired, degraded = old.text, old.retired, False
        messages = []
        # A model reads the summary so far and the answer's room beside the messages.
        most = config.budget.context_tokens // 2
        for run in passes(turns, max_tokens=most, counter=self._counter):
            messages += run
            rolled = await self.roll(
                text, statements(run), new_text=transcript(run), budget_tokens=budget_tokens
            )
            text, retired = rolled.text, retired + rolled.retired
            degraded = degraded or rolled.degraded
        expires = min(turn.expires_at for turn in turns)
        kept, _ = extract(statements(messages), budget_tokens=budget_tokens, counter=self._counter)
        segment = Segment(
            session_key=session.key,
            first_seq=turns[0].seq,
            last_seq=turns[-1].last_seq,
            text=kept,
            expires_at=expires,
            begun=session.created_at,
        )
        return Summary(
            text=text,
            version=old.version + 1,
            covers_through=turns[-1].last_seq,
            retired=retired,
            tokens=self._counter.count(text),
            degraded=degraded,
            expires_at=min(expires, old.expires_at) if old.text else expires,
            unfiled=segment,
        )

    async def rebuilt(
        self, session: Session, segments: Sequence[Segment], *, config: MemoryConfig
    ) -> Summary:
        """The session's summary made anew of these segments alone, up to the same message."""
        rolled = await self.roll(
            "",
            [statement for segment in segments for statement in parse(segment.text)],
            new_text="\n".join(segment.text for segment in segments),
            budget_tokens=_room(config),
        )
        unfiled = session.summary.unfiled
        return msgspec.structs.replace(
            session.summary,
            text=rolled.text,
            version=session.summary.version + 1,
            retired=rolled.retired,
            tokens=self._counter.count(rolled.text),
            degraded=rolled.degraded,
            expires_at=min((s.expires_at for s in segments), default=NEVER),
            unfiled=unfiled if unfiled is not None and unfiled.expires_at > now() else None,
        )

    async def roll(
        self, previous: str, new: Sequence[Statement], *, new_text: str, budget_tokens: int
    ) -> Rolled:
        """`previous` with the `new` statements (whose full text is `new_text`) in at most
        `budget_tokens`.

        The statements that the model lost are added where there is room for them. Where there is
        not, or the model refuses or keeps nothing of what it had to, it is asked once more; then
        the extract is taken, degraded.
        """
        known = [*parse(previous), *new]
        # Asked for a summary of nothing, a model makes something up.
        summarizer = self._summarizer if known or new_text else None
        if summarizer is not None and budget_tokens:
            rolled = await self._by_model(summarizer, previous, known, new_text, budget_tokens)
            if rolled is not None:
                return rolled
        text, left_out = extract(known, budget_tokens=budget_tokens, counter=self._counter)
        retired = sum(bool(statement.marks) for statement in left_out)
        return Rolled(text, retired, degraded=summarizer is not None)

    async def _by_model(
        self, summarizer: Summarizer, previous: str, known: Sequence[Statement], new_text: str,
        budget_tokens: int,
    ) -> Rolled | None:  # fmt: skip
        marked = sum(bool(statement.marks) for statement in known)
        must_keep = ""
        for _try in range(TRIES):
            try:
                text = await summarizer(
                    previous=previous,
                    new_text=new_text,
                    max_tokens=budget_tokens,
                    must_keep=must_keep,
                )
            except Exception:  # whatever a model's client may raise; it has been logged
                return None
            missing, retired = lost(text, known, budget_tokens=budget_tokens, counter=self._counter)
            must_keep = render(missing)
            mended = "\n".join(part for part in (text.strip(), must_keep) if part)
            useless = _REFUSAL.match(text) or (marked and len(missing) + retired == marked)
            if text.strip() and not useless and self._counter.count(mended) <= budget_tokens:
                return Rolled(mended, retired, degraded=False)
        return None


def _room(config: MemoryConfig) -> int:
    """Tokens of a rolled text, so that it fits its layer with the fence around it."""
    return max(0, config.budget.summary_tokens - SUMMARY_FENCE_TOKENS)
