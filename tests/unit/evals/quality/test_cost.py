from __future__ import annotations

from datetime import datetime
from typing import Any

from evals.quality.cost import Exchange, Step, exchanges, figures, run
from evals.quality.datasets import DataSet
from memory import MemoryConfig
from memory.config import BudgetConfig, EmbeddingConfig
from memory.interchange.conversations import Conversation, SourceSession, SourceTurn

BY_WORDS = MemoryConfig(
    embedding=EmbeddingConfig(provider="none"),
    budget=BudgetConfig(
        context_tokens=600, window_tokens=200, summary_tokens=80, recall_tokens=100, facts_tokens=0
    ),
)


def session(*turns: tuple[str, str], name: str = "s") -> SourceSession:
    return SourceSession(
        session_id=name,
        datetime=datetime(2024, 5, 8, 12),
        turns=[
            SourceTurn(turn_id=f"{name}:{n}", speaker=role, role=role, text=text)
            for n, (role, text) in enumerate(turns)
        ],
    )


def data(*sessions: SourceSession) -> DataSet:
    return DataSet("set", [Conversation(conversation_id="c", user_id="u", sessions=list(sessions))])


def chat(turns: int, *, name: str = "s") -> SourceSession:
    pairs: list[tuple[str, str]] = []
    for n in range(turns):
        pairs.append(("user", f"On day {n} I walked {n} miles with Biscuit along the river."))
        pairs.append(("assistant", f"Walk number {n} sounds good; Biscuit must be tired by now."))
    return session(*pairs, name=name)


def step(**changes: Any) -> Step:
    values: dict[str, Any] = {
        "turn": 1,
        "first_of_session": False,
        "prompt": 100,
        "layers": dict.fromkeys(("system", "facts", "summary", "window", "recall", "question"), 10),
        "stable_prefix": 50,
        "all_history": 400,
        "session_history": 300,
        "last_messages": 200,
        "degraded": (),
        "seconds": 0.01,
    }
    return Step(**{**values, **changes})


async def replay(given: DataSet, *, turns: int | None = None) -> dict[str, Any]:
    return await run(given, config=BY_WORDS, turns=turns, tell=lambda done, total: None)


def test_each_question_meets_its_answer() -> None:
    assert exchanges(session(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))) == [
        Exchange("Hi", "Hello"),
        Exchange("Bye", ""),
    ]


def test_neighbours_of_one_role_are_one_message() -> None:
    turns = (("user", "Hi"), ("user", "you"), ("assistant", "Hello"), ("assistant", "there"))
    assert exchanges(session(*turns)) == [Exchange("Hi\n\nyou", "Hello\n\nthere")]


def test_a_leading_answer_stands_alone() -> None:
    turns = (("assistant", "Welcome"), ("user", "Hi"), ("assistant", "Hello"))
    assert exchanges(session(*turns)) == [Exchange("", "Welcome"), Exchange("Hi", "Hello")]


def test_blank_turns_are_left_out() -> None:
    turns = (("user", "Hi"), ("assistant", " \n"), ("user", "again"), ("assistant", "Hello"))
    assert exchanges(session(*turns)) == [Exchange("Hi\n\nagain", "Hello")]


def test_the_prompt_is_set_against_the_histories() -> None:
    found = figures([step(), step(prompt=300, all_history=1200)], [0, 2])
    assert found["prompt_tokens"]["mean"] == 200.0
    assert found["against"]["all_history"]["prompt_share"] == 25.0
    assert found["summary_versions"] == {"sessions_with": 1, "total": 2, "max": 2}


def test_a_sessions_first_turn_has_no_prefix_to_reuse() -> None:
    found = figures([step(first_of_session=True, stable_prefix=0), step()], [0])
    assert found["stable_prefix"] == {"share": 25.0, "share_within_session": 50.0, "none": 0}


def test_nothing_replayed_gives_zeros() -> None:
    found = figures([], [])
    assert found["turns"] == 0
    assert found["milestones"] == []
    assert found["against"]["last_20"]["prompt_share"] == 0.0


async def test_no_prompt_exceeds_the_budget_while_the_history_grows() -> None:
    found = await replay(data(chat(12), chat(6, name="t")))
    assert found["turns"] == 18
    assert found["sessions"] == 2
    assert found["prompt_tokens"]["max"] <= BY_WORDS.budget.context_tokens
    assert found["against"]["all_history"]["max"] > found["prompt_tokens"]["max"]
    assert found["summary_versions"]["total"] > 0
    assert found["stable_prefix"]["share_within_session"] > 0


async def test_two_replays_count_the_same_tokens() -> None:
    first, second = await replay(data(chat(8))), await replay(data(chat(8)))
    first.pop("latency_ms"), second.pop("latency_ms")
    assert first == second


async def test_turns_are_limited_for_each_conversation() -> None:
    found = await replay(data(chat(4), chat(4, name="t")), turns=5)
    assert (found["turns"], found["turns_limit"], found["sessions"]) == (5, 5, 2)


async def test_what_has_no_counterpart_is_recorded_and_counts_as_history() -> None:
    turns = (("assistant", "Welcome back."), ("user", "Hi"), ("assistant", "Hello"), ("user", "…"))
    found = await replay(data(session(*turns)))
    assert found["turns"] == 1
    assert found["stable_prefix"]["none"] == 0  # nothing was sent before it
    # The greeting and the fixed line before it stand in the prompt too.
    assert found["prompt_tokens"]["max"] >= found["against"]["all_history"]["max"]
