"""Random turns and statements for the tests of summaries."""

from __future__ import annotations

import random
from datetime import timedelta

from memory.models import Turn
from memory.summary.statements import Statement, statements
from unit.builders import NOON, message, turn
from unit.texts import odd_text

FIRST_NAMES = ("Maria", "Bruno", "Anneliese", "Oskar", "Ji-woo", "Zoë")


def random_log(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    seq = 1
    for _ in range(rng.randint(0, 9)):
        roll_ = rng.random()
        if roll_ < 0.7:
            made = turn(odd_text(rng), odd_text(rng), seq=seq)
        elif roll_ < 0.85:
            made = turn(odd_text(rng), seq=seq)
        else:
            made = turn(odd_text(rng), "", seq=seq, status="failed")
        turns.append(made)
        seq = made.last_seq + 1
    if rng.random() < 0.5:
        turns.append(turn(odd_text(rng), "", seq=seq, status="running"))
    return turns


def random_statements(rng: random.Random) -> list[Statement]:
    messages = [
        message(
            f"{rng.choice(FIRST_NAMES)} told me {rng.randint(1, 99)} things. {odd_text(rng)}",
            seq=n,
            at=NOON + timedelta(days=rng.randint(0, 2)),
        )
        for n in range(rng.randint(0, 8))
    ]
    return statements(sorted(messages, key=lambda m: m.created_at))


def holds(text: str, statement: Statement) -> bool:
    return all(mark in text.casefold() for mark in statement.marks)
