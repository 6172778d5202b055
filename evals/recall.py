"""How much of the labelled evidence is inside a recall context of N tokens.

Through the same code path as a turn, with an empty window, so that recall is what is measured;
indexing is waited for and the recall deadline is off.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, NamedTuple

import msgspec

from memory import Ask, MemoryConfig, Strata, User, open_memory
from memory.config import BudgetConfig
from memory.conversations import Conversation, SourceQuestion, batches, load_conversations
from memory.packing import quoted

EXCLUDED = frozenset({"adversarial", "abstention"})
TENANT = "evals"
# Room for the rules, the question and the chat overhead beside the recall block.
FRAME_TOKENS = 4000


class Row(NamedTuple):
    """One question at one budget, as it stands in retrieved.jsonl."""

    question_id: str
    category: str
    budget: int
    retrieved: list[str]
    context_tokens: int
    context: str
    evidence: list[str]
    seconds: float


def eval_config(config: MemoryConfig, folder: Path, *, recall_tokens: int) -> MemoryConfig:
    """`config` with stores of its own under `folder` and nothing in the context but recall."""
    return config.model_copy(
        update={
            "budget": BudgetConfig(
                context_tokens=recall_tokens + FRAME_TOKENS,
                window_tokens=0,
                summary_tokens=0,
                facts_tokens=0,
                recall_tokens=recall_tokens,
            ),
            "store": config.store.model_copy(update={"url": f"sqlite:///{folder}/strata.db"}),
            "index": config.index.model_copy(update={"url": f"edge:///{folder}/index"}),
            "ttl": config.ttl.model_copy(update={"memory": math.inf, "session": math.inf}),
        }
    )


async def ingest(strata: Strata, conversation: Conversation) -> dict[str, str]:
    """Record a conversation as its user's memory; the source's turn id by message id."""
    sources: dict[str, str] = {}
    for batch in batches(conversation):
        user = User(TENANT, batch.user)
        recorded = await strata.memory.record(user, batch.session_id, batch.messages)
        for message_id, message in zip(recorded.message_ids, batch.messages, strict=True):
            sources[message_id] = message.id or ""
    return sources


async def run(
    path: Path, *, budgets: Sequence[int], config: MemoryConfig
) -> tuple[list[Row], dict[str, Any]]:
    """Measure one data set; its rows, and its part of the report."""
    conversations = load_conversations(path)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="strata-evals-") as folder:
        chosen = eval_config(config, Path(folder), recall_tokens=max(budgets))
        async with open_memory(chosen, background=False) as strata:
            await strata.model_loaded.wait()
            for conversation in conversations:
                sources = await ingest(strata, conversation)
                await strata.settled()
                for question in conversation.questions:
                    for budget in budgets:
                        rows.append(
                            await _ask(strata, conversation, question, budget, sources, chosen)
                        )
            embedding = f"{strata.model.state} {strata.model.identity}".strip()
    return rows, _report(path.stem, rows, budgets, embedding)


async def _ask(
    strata: Strata,
    conversation: Conversation,
    question: SourceQuestion,
    budget: int,
    sources: dict[str, str],
    config: MemoryConfig,
) -> Row:
    texts = {t.turn_id: t.text for s in conversation.sessions for t in s.turns}
    started = time.perf_counter()
    context = await strata.memory.preview(
        Ask(
            user=User(TENANT, conversation.user_id),
            session_id="evals:question",
            question=question.question,
            budget=config.budget.model_copy(update={"recall_tokens": budget}),
            recall_deadline=math.inf,
        )
    )
    seconds = time.perf_counter() - started
    block = context.recall_block
    retrieved = []
    for item in context.receipt.layers.recall.items:
        source = sources[item.message_id]
        if quoted(texts[source].strip()) in block:
            retrieved.append(source)
    return Row(
        question_id=question.question_id,
        category=question.category,
        budget=budget,
        retrieved=retrieved,
        context_tokens=strata.counter.count(block),
        context=block,
        evidence=question.evidence,
        seconds=seconds,
    )


def _report(
    name: str, rows: Sequence[Row], budgets: Sequence[int], embedding: str
) -> dict[str, Any]:
    scored = [row for row in rows if row.evidence and row.category not in EXCLUDED]
    of_budget: dict[str, Any] = {}
    for budget in budgets:
        chosen = [row for row in scored if row.budget == budget]
        categories: dict[str, list[Row]] = defaultdict(list)
        for row in chosen:
            categories[row.category].append(row)
        of_budget[str(budget)] = {
            **_figures(chosen),
            "by_category": {key: _figures(part) for key, part in sorted(categories.items())},
        }
    times = [row.seconds * 1000 for row in rows]
    return {
        "name": name,
        "embedding": embedding,
        "questions": len({row.question_id for row in scored}),
        "budgets": of_budget,
        "latency_ms": {
            "p50": round(quantiles(times, n=100)[49], 2) if len(times) > 1 else 0.0,
            "p99": round(quantiles(times, n=100)[98], 2) if len(times) > 1 else 0.0,
        },
    }


def _figures(rows: Sequence[Row]) -> dict[str, float]:
    if not rows:
        return {"recall": 0.0, "all": 0.0, "tokens": 0.0}
    shares = [len(set(r.evidence) & set(r.retrieved)) / len(set(r.evidence)) for r in rows]
    return {
        "recall": round(100 * fmean(shares), 2),
        "all": round(100 * fmean(share == 1 for share in shares), 2),
        "tokens": round(fmean(row.context_tokens for row in rows), 1),
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
