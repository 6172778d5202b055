from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from memory.summary.plan import COMPACT_AT, passes, plan
from memory.window import turn_tokens
from unit.builders import counter, dialogue
from unit.memory.summary.logs import random_log


@given(st.randoms(use_true_random=False), st.integers(1, 900), st.floats(0.05, 0.85))
def test_a_plan_compacts_the_oldest_finished_turns_and_never_the_newest(
    rng: random.Random, window: int, compact_to: float
) -> None:
    turns = random_log(rng)
    chosen = plan(turns, window_tokens=window, compact_to=compact_to, counter=counter())
    costs = [turn_tokens(t, counter()) for t in turns]
    finished = [t for t in turns if t.status != "running"]

    assert chosen == turns[: len(chosen)], "the oldest first, none skipped"
    assert all(t.status != "running" for t in chosen)
    assert not finished or finished[-1] not in chosen
    if sum(costs) <= COMPACT_AT * window:
        assert chosen == []
        return
    left = sum(costs[len(chosen) :])
    assert left <= compact_to * window or len(chosen) == max(0, len(finished) - 1)
    if chosen:
        before_last = sum(costs[len(chosen) - 1 :])
        assert before_last > compact_to * window, "no more than needed"


def test_nothing_from_a_running_turn_on_is_compacted() -> None:
    turns = dialogue([("hello " * 20, "hi " * 20)] * 6)
    turns[2] = msgspec.structs.replace(turns[2], status="running")
    chosen = plan(turns, window_tokens=50, compact_to=0.1, counter=counter())
    assert chosen == turns[:1]


def test_at_most_85_percent_of_the_window_compacts_nothing() -> None:
    turns = dialogue([("hello", "hi")] * 10)
    total = sum(turn_tokens(t, counter()) for t in turns)
    for window, full in ((int(total / 0.85) + 1, False), (int(total / 0.85) - 1, True)):
        found = plan(turns, window_tokens=window, compact_to=0.4, counter=counter())
        assert bool(found) is full


@given(st.randoms(use_true_random=False), st.integers(1, 300))
def test_passes_hold_every_message_in_order_and_what_a_model_can_read(
    rng: random.Random, most: int
) -> None:
    turns = random_log(rng)
    runs = passes(turns, max_tokens=most, counter=counter())
    everything = [m for t in turns for m in t.messages if m.content]
    assert [m for run in runs for m in run] == everything
    assert all(runs)
    for run in runs:
        assert sum(m.tokens for m in run) <= most or len(run) == 1
