"""Pure: two rankings become one. z-fusion and its boosts, as measured in docs/recall.md.

Scores of both keys are z-normalised over the union of the candidates; one that a key did not
return counts as that key's lowest. Everything else shifts that score in units of z.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from datetime import date
from operator import itemgetter
from typing import NamedTuple

from memory.config import RecallConfig
from memory.indexes.base import Hit, Hits
from memory.indexes.features import Features
from memory.recall.query import Query, date_match

# Measured on evals/data: German and Chinese gain up to 13 points of B@1024 over the full weight.
FOREIGN_DENSE_SHARE = 0.3
LENGTH_CAP_TOKENS = 80
LENGTH_UNIT_TOKENS = 30
_LENGTHS = [math.log(max(n, 1) / LENGTH_UNIT_TOKENS) for n in range(LENGTH_CAP_TOKENS + 1)]


_Scored = tuple[float, Hashable, Features]
_SCORE = itemgetter(0)


class Candidate(NamedTuple):
    payload: Features
    score: float
    dense_rank: int | None  # 1 = best
    lexical_rank: int | None


def fuse(
    hits: Hits, question: Query, config: RecallConfig, *, english_model: bool = False
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
    scores = [
        config.sparse_weight * lexical + dense_weight * dense + boost
        for lexical, dense, boost in zip(
            _z_scores(hits.lexical, payloads),
            _z_scores(hits.dense, payloads),
            _boosts(payloads.values(), question, config),
            strict=True,
        )
    ]
    of = zip(scores, payloads, payloads.values(), strict=True)
    scored: list[_Scored] = sorted(of, key=_SCORE, reverse=True)
    if config.floor:
        kept = _above_floor(hits, config.floor)
        scored = [one for one in scored if one[1] in kept]
    scored = _spread(scored, config.repeat_weight)
    bonus = _session_bonus(scored, config.session_weight)
    lexical_rank = {hit.id: rank for rank, hit in enumerate(hits.lexical, 1)}.get
    dense_rank = {hit.id: rank for rank, hit in enumerate(hits.dense, 1)}.get
    candidates = [
        Candidate(
            payload, score + bonus[payload["session"]], dense_rank(point), lexical_rank(point)
        )
        for score, point, payload in scored
    ]
    candidates.sort(key=_place)
    return candidates


def _place(candidate: Candidate) -> tuple[float, str, int]:
    """Best first; ties are settled, so that the same index always ranks alike."""
    payload, score, _, _ = candidate
    return -score, payload["message"], payload["passage"]


def _z_scores(hits: Sequence[Hit], union: Collection[Hashable]) -> list[float]:
    """In the order of the union."""
    if not hits:
        return [0.0] * len(union)
    scores = {point: score for point, score, _ in hits}
    lowest = min(scores.values())
    values = [scores.get(point, lowest) for point in union]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum([(v - mean) ** 2 for v in values]) / len(values))
    return [(v - mean) / deviation if deviation else 0.0 for v in values]


def _above_floor(hits: Hits, floor: float) -> set[Hashable]:
    """Judged on the raw evidence: the best of nothing also has a high z."""
    return {hit.id for hit in hits.lexical} | {hit.id for hit in hits.dense if hit.score >= floor}


def _boosts(payloads: Iterable[Features], question: Query, config: RecallConfig) -> Iterator[float]:
    """What each passage gains or loses beside its two scores."""
    user = 0.0 if question.asks_assistant else config.role_weight
    lengths = [-config.length_weight * length for length in _LENGTHS]
    days: dict[int, float] = {}
    for payload in payloads:
        tokens, speakers = payload["tokens"], payload["speakers"]
        boost = lengths[tokens if tokens < LENGTH_CAP_TOKENS else LENGTH_CAP_TOKENS]
        if not speakers:
            if payload["role"] == "user":
                boost += user
        elif not question.names.isdisjoint(speakers):
            boost += config.speaker_weight
        if question.dates:
            day = payload["day"]
            if day not in days:
                match = date_match(question.dates, date.fromordinal(day))
                days[day] = config.date_weight * match
            boost += days[day]
        yield boost


def _spread(scored: Iterable[_Scored], weight: float) -> list[_Scored]:
    """`weight` less for each better passage of the same message."""
    seen: dict[str, int] = {}
    spread = []
    for score, point, payload in scored:
        better = seen.get(payload["message"], 0)
        seen[payload["message"]] = better + 1
        spread.append((score - weight * better, point, payload))
    return spread


def _session_bonus(scored: Iterable[_Scored], weight: float) -> dict[str, float]:
    """`weight` × the mean of each session's three best."""
    of_session: dict[str, list[float]] = defaultdict(list)
    for score, _, payload in scored:
        of_session[payload["session"]].append(score)
    best = {name: sorted(scores, reverse=True)[:3] for name, scores in of_session.items()}
    return {name: weight * math.fsum(top) / len(top) for name, top in best.items()}
