from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memory import Strata, User
from memory.config import TtlConfig
from memory.errors import StoreUnavailable
from memory.indexes.features import Features
from memory.models import Recalled, now, session_key
from memory.recall.fusion import Candidate
from memory.recall.search import Ranked, hydrate
from unit.builders import SESSION, USER, dialogue, expired, opened, say, turn

KEY = session_key(USER.key, SESSION)
OTHER = User("acme", "oskar")


def candidate(
    message_id: str, *, passage: int = 0, tokens: int = 5, session: str = KEY, score: float = 1.0
) -> Candidate:
    features = Features(
        session=session, message=message_id, role="user", speakers=[], day=738_000,
        tokens=tokens, passage=passage,
    )  # fmt: skip
    return Candidate(features, score, None, 1)


async def read(
    strata: Strata, *candidates: Candidate, user: User = USER, budget: int = 1000, **more: Any
) -> Recalled:
    values: dict[str, Any] = {"ttl": strata.config.current.ttl, **more}
    return await hydrate(
        Ranked(list(candidates), ("embedding",)), store=strata.store, user=user.key,
        budget_tokens=budget, **values,
    )  # fmt: skip


async def test_candidates_come_back_in_their_order_with_the_stores_own_text(
    strata: Strata,
) -> None:
    await strata.store.turns.append(dialogue([("one", "two"), ("three", "four")]))
    ids = [f"{KEY}:0000000003.a", f"{KEY}:0000000001.u", f"{KEY}:0000000003.u"]
    recalled = await read(strata, *(candidate(i, score=float(-n)) for n, i in enumerate(ids)))
    assert [item.message.content for item in recalled.items] == ["four", "one", "three"]
    assert [item.score for item in recalled.items] == [0.0, -1.0, -2.0]
    assert {item.session_id for item in recalled.items} == {SESSION}
    assert (recalled.gone, recalled.degraded) == (0, ("embedding",))


async def test_what_is_inside_the_window_is_not_read_and_counted(strata: Strata) -> None:
    await strata.store.turns.append(dialogue([("one", "two"), ("three", "four")]))
    inside = f"{KEY}:0000000001.u"
    recalled = await read(
        strata,
        candidate(inside),
        candidate(f"{KEY}:0000000003.u"),
        in_prompt=frozenset({inside, "x"}),
    )
    assert [item.message.content for item in recalled.items] == ["three"]
    assert recalled.in_window == 1


async def test_whatever_the_index_says_only_the_living_and_the_users_own_are_shown(
    strata: Strata,
) -> None:
    theirs = turn("secret", "secret", user=OTHER)
    await strata.store.turns.append([theirs])
    await strata.store.turns.append(
        [
            turn("expired", "x", seq=1, at=now(), expires=now()),
            turn("mine", "", seq=3, at=now(), status="failed"),
        ]
    )
    lies = [
        candidate(f"{theirs.id}.u"),
        candidate(f"{theirs.id}.u", session=KEY),
        candidate(f"{KEY}:0000000001.u"),
        candidate(f"{KEY}:0000000003.a"),
        candidate(f"{KEY}:0000000099.u"),
        candidate("nonsense"),
        candidate(""),
        candidate(f"{KEY}:0000000003.u", passage=1),
        candidate(f"{KEY}:0000000003.u", passage=-1),
    ]
    recalled = await read(strata, *lies, candidate(f"{KEY}:0000000003.u"))
    assert [item.message.content for item in recalled.items] == ["mine"]
    assert recalled.gone == len(lies)


async def test_no_more_is_read_than_the_budget_can_hold(strata: Strata) -> None:
    await strata.store.turns.append(dialogue([(f"question {n}", f"answer {n}") for n in range(50)]))
    many = [candidate(f"{KEY}:{2 * n + 1:010d}.u", tokens=10) for n in range(50)]
    recalled = await read(strata, *many, budget=100)
    assert 100 / 14 <= len(recalled.items) <= 20
    assert len((await read(strata, *many, budget=10**9)).items) == 50


async def test_nothing_found_reads_nothing(strata: Strata) -> None:
    assert await read(strata) == Recalled((), 0, degraded=("embedding",))


async def test_memory_that_lives_with_its_session_is_hidden_with_it(tmp_path: Path) -> None:
    ttl = {"memory": "session", "session": "1s"}
    async with opened(tmp_path, ttl=ttl) as strata:
        mine = await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        wanted = candidate(f"{mine.id}.u")
        settings = TtlConfig.model_validate(ttl)
        assert len((await read(strata, wanted, ttl=settings)).items) == 1
        await expired(mine.recorded_at + timedelta(seconds=1.01))
        recalled = await read(strata, wanted, ttl=settings)
        assert (recalled.items, recalled.gone) == ((), 1)


async def test_a_store_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        pass
    with pytest.raises(StoreUnavailable):
        await read(strata, candidate(f"{KEY}:0000000001.u"))
