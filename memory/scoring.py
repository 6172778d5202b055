"""Pure: two rankings become one. z-fusion and its boosts, as measured in RECALL.md.

Scores of both keys are z-normalised over the union of the candidates; one that a key did not
return counts as that key's lowest. Everything else shifts that score in units of z.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from datetime import date
from typing import NamedTuple

from memory.config import RecallConfig
from memory.indexes.base import Features, Hit, Hits
from memory.question import Question, date_match

# Measured on evals/data: German and Chinese gain up to 13 points of B@1024 over the full weight.
FOREIGN_DENSE_SHARE = 0.3
LENGTH_CAP_TOKENS = 80
LENGTH_UNIT_TOKENS = 30
_LENGTHS = [math.log(max(n, 1) / LENGTH_UNIT_TOKENS) for n in range(LENGTH_CAP_TOKENS + 1)]


class Candidate(NamedTuple):
    payload: Features
    score: float
    dense_rank: int | None  # 1 = best
    lexical_rank: int | None


def rescore(
    hits: Hits, question: Question, config: RecallConfig, *, english_model: bool = False
) -> list[Candidate]:
    """All candidates of both rankings, best first. `english_model`: the dense scores mean little
    for a question in another language, and count less there."""
    payloads: dict[Hashable, Features] = {
        hit.id: hit.payload for hit in (*hits.lexical, *hits.dense)
    }
    if not payloads:
        return []
    dense_weight = config.dense_weight
    if english_model and not question.english:
        dense_weight *= FOREIGN_DENSE_SHARE
    lexical = _z_scores(hits.lexical, payloads)
    dense = _z_scores(hits.dense, payloads)
    lexical_rank = {hit.id: rank for rank, hit in enumerate(hits.lexical, 1)}
    dense_rank = {hit.id: rank for rank, hit in enumerate(hits.dense, 1)}
    kept = _above_floor(hits, config.floor) if config.floor else payloads.keys()

    boosts = _Boosts(question, config)
    scored = []
    for point, payload in payloads.items():
        if point not in kept:
            continue
        score = config.sparse_weight * lexical[point] + dense_weight * dense[point]
        scored.append((score + boosts.of(payload), point))
    scored.sort(key=lambda pair: -pair[0])
    scored = _spread(scored, payloads, config.repeat_weight)
    bonus = _session_bonus(scored, payloads, config.session_weight)
    candidates = [
        Candidate(
            payloads[point],
            score + bonus[payloads[point]["session"]],
            dense_rank.get(point),
            lexical_rank.get(point),
        )
        for score, point in scored
    ]
    candidates.sort(key=lambda c: (-c.score, *_place(c.payload)))
    return candidates


def _place(payload: Features) -> tuple[str, int]:
    """Settles ties, so that the same index always ranks alike."""
    return payload["message"], payload["passage"]


def _z_scores(hits: Sequence[Hit], union: Iterable[Hashable]) -> dict[Hashable, float]:
    scores = {hit.id: hit.score for hit in hits}
    lowest = min(scores.values(), default=0.0)
    values = {point: scores.get(point, lowest) for point in union}
    mean = math.fsum(values.values()) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values.values()) / len(values))
    return {point: (v - mean) / deviation if deviation else 0.0 for point, v in values.items()}


def _above_floor(hits: Hits, floor: float) -> set[Hashable]:
    """Judged on the raw evidence: the best of nothing also has a high z."""
    return {hit.id for hit in hits.lexical} | {hit.id for hit in hits.dense if hit.score >= floor}


class _Boosts:
    """What a passage gains or loses beside its two scores; the same for equal days and lengths."""

    def __init__(self, question: Question, config: RecallConfig) -> None:
        self._question = question
        self._config = config
        self._user = 0.0 if question.asks_assistant else config.role_weight
        self._days: dict[int, float] = {}

    def of(self, payload: Features) -> float:
        speakers = payload["speakers"]
        boost = -self._config.length_weight * _LENGTHS[min(payload["tokens"], LENGTH_CAP_TOKENS)]
        if not speakers:
            if payload["role"] == "user":
                boost += self._user
        elif not self._question.names.isdisjoint(speakers):
            boost += self._config.speaker_weight
        if self._question.dates:
            boost += self._of_day(payload["day"])
        return boost

    def _of_day(self, day: int) -> float:
        if day not in self._days:
            match = date_match(self._question.dates, date.fromordinal(day))
            self._days[day] = self._config.date_weight * match
        return self._days[day]


def _spread(
    scored: Sequence[tuple[float, Hashable]], payloads: dict[Hashable, Features], weight: float
) -> list[tuple[float, Hashable]]:
    """`weight` less for each better passage of the same message."""
    seen: dict[str, int] = defaultdict(int)
    spread = []
    for score, point in scored:
        message = payloads[point]["message"]
        spread.append((score - weight * seen[message], point))
        seen[message] += 1
    return spread


def _session_bonus(
    scored: Sequence[tuple[float, Hashable]], payloads: dict[Hashable, Features], weight: float
) -> dict[str, float]:
    """`weight` × the mean of each session's three best."""
    of_session: dict[str, list[float]] = defaultdict(list)
    for score, point in scored:
        of_session[payloads[point]["session"]].append(score)
    best = {name: sorted(scores, reverse=True)[:3] for name, scores in of_session.items()}
    return {name: weight * math.fsum(top) / len(top) for name, top in best.items()}
