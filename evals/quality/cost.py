"""What a context costs: conversations are replayed turn by turn through the path of real turns.

Each labelled user turn is asked (`begin`, `context`), each labelled assistant turn is its answer
(`finish`). A turn begins when every projection has seen the one before, and the recall deadline
is off, so two runs count the same tokens. Compared with it, with the same system rules and the
same counter: the user's whole past, this session's past, and its last 20 messages.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from evals.quality.datasets import DataSet
from evals.reporting.figures import latency_ms, mean, share, spread
from evals.reporting.progress import Tell
from evals.sandbox import TENANT, embedding_of, sandbox
from memory import Incoming, MemoryConfig, Strata, TurnRequest, User
from memory.interchange.conversations import Conversation, SourceSession
from memory.receipt import Receipt
from memory.tokens import MESSAGE_OVERHEAD_TOKENS, TokenCounter
from memory.window import JOIN

LAST_MESSAGES = 20
LAYERS = ("system", "facts", "summary", "window", "recall", "question")
# Turns of a conversation at which its cost is shown, as far as it goes.
MILESTONES = (1, 10, 25, 50, 100, 200, 400, 800)


class Exchange(NamedTuple):
    """A question and its answer; one of them is empty where the other stands alone."""

    question: str
    answer: str


class Step(NamedTuple):
    """One replayed turn. All numbers but `turn` (counted from 1 in its conversation) and
    `seconds` (of `begin` and `context`) are tokens."""

    turn: int
    first_of_session: bool
    prompt: int
    layers: dict[str, int]
    stable_prefix: int
    all_history: int
    session_history: int
    last_messages: int
    degraded: tuple[str, ...]
    seconds: float


class _Place(NamedTuple):
    """`turn` counts from 1 in its conversation."""

    turn: int
    first_of_session: bool


class _History:
    """What the messages said so far would cost if they were all sent again."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._sessions: dict[str, list[int]] = defaultdict(list)

    def say(self, session_id: str, *texts: str) -> None:
        self._sessions[session_id] += [
            MESSAGE_OVERHEAD_TOKENS + self._counter.count(text) for text in texts if text
        ]

    def all(self) -> int:
        return sum(map(sum, self._sessions.values()))

    def session(self, session_id: str) -> int:
        return sum(self._sessions[session_id])

    def last(self, session_id: str, messages: int) -> int:
        return sum(self._sessions[session_id][-messages:])


def exchanges(session: SourceSession) -> list[Exchange]:
    """The session in questions and answers: neighbours of one role are one message, joined by
    a blank line as in the window; blank turns are left out."""
    spoken = [turn for turn in session.turns if turn.text.strip()]
    found: list[Exchange] = []
    for role, turns in groupby(spoken, key=lambda turn: turn.role):
        text = JOIN.join(turn.text for turn in turns)
        if role == "user":
            found.append(Exchange(text, ""))
        elif found:
            found[-1] = Exchange(found[-1].question, text)
        else:
            found.append(Exchange("", text))
    return found


def effective(config: MemoryConfig) -> MemoryConfig:
    """`config` as it is measured."""
    recall = config.recall.model_copy(update={"deadline": math.inf})
    return config.model_copy(update={"recall": recall})


async def run(
    data: DataSet, *, config: MemoryConfig, turns: int | None, tell: Tell
) -> dict[str, Any]:
    """Replay one data set, at most `turns` turns of each conversation; its part of the report."""
    plans = [_plan(conversation, turns) for conversation in data.conversations]
    total = sum(len(part) for plan in plans for part in plan.values())
    steps: list[Step] = []
    versions: list[int] = []
    done = 0
    async with sandbox(effective(config)) as strata:
        for conversation, plan in zip(data.conversations, plans, strict=True):
            user = User(TENANT, conversation.user_id)
            async for step in _replay(strata, user, plan):
                steps += [step] if step else []
                done += 1
                tell(done, total)
            for session_id in plan:
                session = await strata.history.session(user, session_id)
                versions.append(session.summary.version)
        embedding, estimated = embedding_of(strata), strata.counter.estimated
    return {
        "name": data.name,
        "embedding": embedding,
        "estimated": estimated,
        "conversations": len(data.conversations),
        "turns_limit": turns,
        **figures(steps, versions),
    }


def _plan(conversation: Conversation, turns: int | None) -> dict[str, list[Exchange]]:
    """What is replayed, by session, with at most `turns` questions that have an answer."""
    left = math.inf if turns is None else turns
    plan: dict[str, list[Exchange]] = {}
    for session in conversation.sessions:
        for exchange in exchanges(session):
            if left <= 0:
                return plan
            left -= bool(exchange.question and exchange.answer)
            plan.setdefault(session.session_id, []).append(exchange)
    return plan


async def _replay(
    strata: Strata, user: User, plan: Mapping[str, Sequence[Exchange]]
) -> AsyncIterator[Step | None]:
    """One user's conversation; None for what was recorded because it had no counterpart."""
    history = _History(strata.counter)
    turn = 0
    for session_id, part in plan.items():
        asked = False
        for exchange in part:
            step = None
            if exchange.question and exchange.answer:
                turn += 1
                ask = TurnRequest(user=user, session_id=session_id, question=exchange.question)
                place = _Place(turn, first_of_session=not asked)
                step = await _turn(strata, ask, exchange.answer, history, place)
                asked = True
            else:
                await _record(strata, user, session_id, exchange)
            history.say(session_id, *exchange)
            await strata.caught_up()
            yield step


async def _turn(
    strata: Strata, ask: TurnRequest, answer: str, history: _History, place: _Place
) -> Step:
    started = time.perf_counter()
    open_turn = await strata.memory.begin(ask)
    try:
        context = await open_turn.context()
        seconds = time.perf_counter() - started
        await open_turn.finish(answer, status="done")
    finally:
        open_turn.abandon()
    receipt = context.receipt
    layers = layer_tokens(receipt)
    frame = layers["system"] + layers["question"]
    return Step(
        turn=place.turn,
        first_of_session=place.first_of_session,
        prompt=receipt.used_tokens,
        layers=layers,
        stable_prefix=receipt.stable_prefix_tokens,
        all_history=frame + history.all(),
        session_history=frame + history.session(ask.session_id),
        last_messages=frame + history.last(ask.session_id, LAST_MESSAGES),
        degraded=receipt.degraded,
        seconds=seconds,
    )


def layer_tokens(receipt: Receipt) -> dict[str, int]:
    return {name: getattr(receipt.layers, name).tokens for name in LAYERS}


async def _record(strata: Strata, user: User, session_id: str, exchange: Exchange) -> None:
    role = "user" if exchange.question else "assistant"
    text = exchange.question or exchange.answer
    await strata.memory.record(user, session_id, [Incoming(role=role, content=text)])


def figures(steps: Sequence[Step], versions: Sequence[int]) -> dict[str, Any]:
    """The figures of replayed turns; `versions` are the final summary versions of all sessions."""
    prompt = sum(step.prompt for step in steps)
    against = {
        "all_history": [step.all_history for step in steps],
        "session_history": [step.session_history for step in steps],
        f"last_{LAST_MESSAGES}": [step.last_messages for step in steps],
    }
    following = [step for step in steps if not step.first_of_session]
    return {
        "turns": len(steps),
        "sessions": len(versions),
        "prompt_tokens": spread([step.prompt for step in steps]),
        "layers": {name: spread([step.layers[name] for step in steps]) for name in LAYERS},
        "against": {
            name: {**spread(tokens), "prompt_share": share(prompt, sum(tokens))}
            for name, tokens in against.items()
        },
        "stable_prefix": {
            "share": _stable(steps),
            "share_within_session": _stable(following),
            "none": sum(step.stable_prefix == 0 for step in following),
        },
        "degraded": dict(sorted(Counter(why for step in steps for why in step.degraded).items())),
        "summary_versions": {
            "sessions_with": sum(version > 0 for version in versions),
            "total": sum(versions),
            "max": max(versions, default=0),
        },
        "milestones": [_milestone(steps, turn) for turn in MILESTONES if _at(steps, turn)],
        "latency_ms": latency_ms([step.seconds for step in steps]),
    }


def _stable(steps: Sequence[Step]) -> float:
    """Mean share of the prompt, in percent, that a provider's cache can reuse."""
    return round(100 * mean([step.stable_prefix / step.prompt for step in steps]), 2)


def _at(steps: Sequence[Step], turn: int) -> list[Step]:
    return [step for step in steps if step.turn == turn]


def _milestone(steps: Sequence[Step], turn: int) -> dict[str, Any]:
    at = _at(steps, turn)
    return {
        "turn": turn,
        "conversations": len(at),
        "prompt_tokens": round(mean([step.prompt for step in at]), 1),
        "all_history": round(mean([step.all_history for step in at]), 1),
    }
