"""How much of the labelled evidence is inside a recall context of N tokens.

Questions take the code path of a turn, with an empty window, so that recall alone is measured.
The first question is asked when everything is indexed; the recall deadline is off.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from evals.quality.datasets import DataSet
from evals.reporting.figures import latency_ms, mean
from evals.reporting.progress import Tell
from evals.sandbox import TENANT, embedding_of, sandbox
from memory import MemoryConfig, Strata, TurnRequest, User
from memory.config import BudgetConfig
from memory.interchange.conversations import Conversation, SourceQuestion, batches
from memory.recall.packing import quoted

EXCLUDED = frozenset({"adversarial", "abstention"})
# Room for the rules and the chat overhead beside question and recall block.
FRAME_TOKENS = 1000


class Row(NamedTuple):
    """One question at one budget, as it stands in retrieved.jsonl."""

    question_id: str
    category: str
    budget: int
    retrieved: list[str]
    context_tokens: int
    context: str
    evidence: list[str]
    degraded: tuple[str, ...]
    seconds: float


class _Known(NamedTuple):
    """A conversation in memory: its turns' texts, and the source's turn id by message id."""

    conversation: Conversation
    texts: Mapping[str, str]
    sources: Mapping[str, str]


def recall_budget(recall_tokens: int, *, question_tokens: int = 0) -> BudgetConfig:
    """A budget without window, summary and facts, with room for rules and question."""
    return BudgetConfig(
        context_tokens=recall_tokens + question_tokens + FRAME_TOKENS,
        window_tokens=0,
        summary_tokens=0,
        facts_tokens=0,
        recall_tokens=recall_tokens,
    )


def effective(config: MemoryConfig, budgets: Sequence[int]) -> MemoryConfig:
    """`config` as it is measured at the largest of `budgets`."""
    return config.model_copy(
        update={
            "budget": recall_budget(max(budgets)),
            "recall": config.recall.model_copy(update={"deadline": math.inf}),
        }
    )


async def run(
    data: DataSet, *, budgets: Sequence[int], config: MemoryConfig, tell: Tell
) -> tuple[list[Row], dict[str, Any]]:
    """Measure one data set; its rows, and its part of the report."""
    rows: list[Row] = []
    total = sum(len(c.questions) for c in data.conversations)
    total += sum(len(s.turns) for c in data.conversations for s in c.sessions)
    done = 0
    async with sandbox(effective(config, budgets)) as strata:
        for conversation in data.conversations:
            known = await _ingest(strata, conversation)
            done += len(known.texts)
            tell(done, total)
            for question in conversation.questions:
                for budget in budgets:
                    rows.append(await _ask(strata, known, question, budget))
                done += 1
                tell(done, total)
        embedding = embedding_of(strata)
    return rows, figures(data.name, rows, budgets=budgets, embedding=embedding)


async def _ingest(strata: Strata, conversation: Conversation) -> _Known:
    """Record a conversation as its user's memory; return when all of it can be found."""
    sources: dict[str, str] = {}
    for batch in batches(conversation):
        user = User(TENANT, batch.user)
        recorded = await strata.memory.record(user, batch.session_id, batch.messages)
        for message_id, message in zip(recorded.message_ids, batch.messages, strict=True):
            sources[message_id] = message.id or ""
    await strata.caught_up()
    texts = {turn.turn_id: turn.text for s in conversation.sessions for turn in s.turns}
    return _Known(conversation, texts, sources)


async def _ask(strata: Strata, known: _Known, question: SourceQuestion, budget: int) -> Row:
    question_tokens = strata.counter.count(question.question)
    started = time.perf_counter()
    context = await strata.memory.preview(
        TurnRequest(
            user=User(TENANT, known.conversation.user_id),
            session_id="evals:question",
            question=question.question,
            budget=recall_budget(budget, question_tokens=question_tokens),
        )
    )
    seconds = time.perf_counter() - started
    block = context.recall_block
    retrieved = []
    for item in context.receipt.layers.recall.items:
        source = known.sources[item.message_id]
        if quoted(known.texts[source].strip()) in block:
            retrieved.append(source)
    return Row(
        question_id=question.question_id,
        category=question.category,
        budget=budget,
        retrieved=retrieved,
        context_tokens=strata.counter.count(block),
        context=block,
        evidence=question.evidence,
        degraded=context.receipt.degraded,
        seconds=seconds,
    )


def figures(
    name: str, rows: Sequence[Row], *, budgets: Sequence[int], embedding: str
) -> dict[str, Any]:
    """One entry of the report's `datasets`. Questions without evidence are not scored."""
    scored = [row for row in rows if row.evidence and row.category not in EXCLUDED]
    of_budget: dict[str, Any] = {}
    for budget in budgets:
        chosen = [row for row in scored if row.budget == budget]
        categories: dict[str, list[Row]] = defaultdict(list)
        for row in chosen:
            categories[row.category].append(row)
        of_budget[str(budget)] = {
            **_shares(chosen),
            "by_category": {
                key: {"questions": len(part), **_shares(part)}
                for key, part in sorted(categories.items())
            },
        }
    return {
        "name": name,
        "embedding": embedding,
        "questions": len({row.question_id for row in scored}),
        "budgets": of_budget,
        "degraded": dict(sorted(Counter(why for row in rows for why in row.degraded).items())),
        "latency_ms": latency_ms([row.seconds for row in rows]),
    }


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    found = [len(set(r.evidence) & set(r.retrieved)) / len(set(r.evidence)) for r in rows]
    return {
        "recall": round(100 * mean(found), 2),
        "all": round(100 * mean([part == 1 for part in found]), 2),
        "tokens": round(mean([row.context_tokens for row in rows]), 1),
    }


def retrieved_line(row: Row) -> bytes:
    """One line of retrieved.jsonl."""
    return msgspec.json.encode(
        {
            "question_id": row.question_id,
            "budget": row.budget,
            "retrieved": row.retrieved,
            "context_tokens": row.context_tokens,
            "context": row.context,
        }
    )
