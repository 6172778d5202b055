from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from memory.summary.extract import extract, lost
from memory.summary.statements import statements
from unit.builders import counter, message
from unit.memory.summary.logs import holds, random_statements


@given(st.randoms(use_true_random=False), st.integers(0, 200))
def test_an_extract_keeps_to_its_budget_and_its_order(rng: random.Random, budget: int) -> None:
    known = random_statements(rng)
    text, left_out = extract(known, budget_tokens=budget, counter=counter())
    assert counter().count(text) <= budget
    lines = text.splitlines()
    place = 0
    kept = [s for s in known if not any(s is other for other in left_out)]
    for statement in kept:
        place = lines.index(statement.line, place) + 1
    assert len(kept) + len(left_out) == len(known)


def test_an_extract_prefers_the_newest_and_what_holds_names() -> None:
    known = statements(
        [
            message("My cat is called Oskar."),
            message("I like green tea very much."),
            message("My dog is called Bruno."),
        ]
    )
    room = counter().count("8 May 2024:\n" + known[0].line + "\n")
    text, _ = extract(known, budget_tokens=room + 2, counter=counter())
    assert text.splitlines() == ["8 May 2024:", "User: My dog is called Bruno."]
    text, _ = extract(known, budget_tokens=2 * room - 3, counter=counter())
    assert "Oskar" in text
    assert "Bruno" in text
    assert "tea" not in text


@given(st.randoms(use_true_random=False), st.integers(0, 300))
def test_what_a_text_does_not_tell_is_missing_or_retired(rng: random.Random, budget: int) -> None:
    known = random_statements(rng)
    text, _ = extract(rng.sample(known, len(known) // 2), budget_tokens=200, counter=counter())
    missing, retired = lost(text, known, budget_tokens=budget, counter=counter())
    untold = [s for s in known if s.marks and not holds(text, s)]
    assert len(missing) + retired == len(untold)
    assert all(s in untold for s in missing)
    lines = "".join(s.line + "\n" for s in missing)
    assert counter().count(lines) <= budget + len(missing)
