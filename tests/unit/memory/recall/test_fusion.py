from __future__ import annotations

import math
import random
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from memory.config import RecallConfig
from memory.indexes.base import Hit, Hits
from memory.indexes.features import Features
from memory.recall.fusion import fuse
from memory.recall.query import Mention, Query

CONFIG = RecallConfig()
PLAIN = Query(text="", dense="", names=frozenset(), dates=(), asks_assistant=False)


def features(message: str, **more: object) -> Features:
    values: dict[str, object] = {
        "session": f"s-{message}", "message": message, "role": "assistant", "speakers": [],
        "day": date(2024, 5, 8).toordinal(), "tokens": 30, "passage": 0,
    }  # fmt: skip
    return Features(**{**values, **more})  # type: ignore[typeddict-item]


def hit(message: str, score: float, **more: object) -> Hit:
    made = features(message, **more)
    return Hit(f"{message}#{made['passage']}", score, made)


def order(hits: Hits, question: Query = PLAIN, config: RecallConfig = CONFIG) -> list[str]:
    return [c.payload["message"] for c in fuse(hits, question, config)]


def test_without_hits_there_are_no_candidates() -> None:
    assert fuse(Hits([], []), PLAIN, CONFIG) == []


def test_what_both_keys_find_comes_first() -> None:
    hits = Hits(
        lexical=[hit("both", 9.0), hit("words", 8.0), hit("none", 1.0)],
        dense=[hit("both", 0.9), hit("meaning", 0.7), hit("none", 0.1)],
    )
    assert order(hits)[0] == "both"
    assert order(hits)[-1] == "none"


def test_what_a_key_did_not_return_counts_as_its_lowest() -> None:
    """Neither better nor worse: a key returns its best, and says nothing of the rest."""

    def scores(hits: Hits) -> dict[str, float]:
        return {c.payload["message"]: c.score for c in fuse(hits, PLAIN, CONFIG)}

    words, meaning = [hit("a", 10.0), hit("b", 9.0)], [hit("a", 0.4), hit("c", 0.6)]
    without = scores(Hits(words, meaning))
    assert without == scores(Hits([*words, hit("c", 9.0)], [*meaning, hit("b", 0.4)]))
    assert without != scores(Hits([*words, hit("c", 0.0)], [*meaning, hit("b", 0.4)]))


def test_ranks_are_those_of_each_key() -> None:
    hits = Hits([hit("a", 2.0), hit("b", 1.0)], [hit("b", 0.5)])
    found = {
        c.payload["message"]: (c.dense_rank, c.lexical_rank) for c in fuse(hits, PLAIN, CONFIG)
    }
    assert found == {"a": (None, 1), "b": (1, 2)}


def test_one_key_that_fails_to_tell_apart_leaves_it_to_the_other() -> None:
    hits = Hits([hit("a", 1.0), hit("b", 2.0)], [hit("a", 0.5), hit("b", 0.5)])
    assert order(hits) == ["b", "a"]
    assert order(Hits([hit("a", 1.0)], [])) == ["a"]


def test_what_a_named_participant_said_is_preferred() -> None:
    hits = Hits([hit("other", 2.0, speakers=["x"]), hit("hers", 1.9, speakers=["h"])], [])
    assert order(hits) == ["other", "hers"]
    assert order(hits, PLAIN._replace(names=frozenset({"h"}))) == ["hers", "other"]


def test_the_users_own_messages_are_preferred_unless_the_assistants_are_asked_for() -> None:
    hits = Hits([hit("told", 2.0), hit("mine", 1.9, role="user")], [])
    assert order(hits) == ["mine", "told"]
    assert order(hits, PLAIN._replace(asks_assistant=True)) == ["told", "mine"]
    named = Hits([hit("told", 2.0), hit("mine", 1.9, role="user", speakers=["h"])], [])
    assert order(named) == ["told", "mine"], "between named people the role says nothing"


def test_what_was_said_on_the_date_is_preferred() -> None:
    then = date(2023, 3, 1).toordinal()
    hits = Hits([hit("then", 1.9, day=then), hit("now", 2.0), hit("never", 0.0)], [])
    assert order(hits) == ["now", "then", "never"]
    assert order(hits, PLAIN._replace(dates=(Mention(2023, 3, 1),))) == ["then", "now", "never"]


def test_shorter_passages_win_between_equals() -> None:
    hits = Hits([hit("long", 1.0, tokens=79), hit("short", 1.0, tokens=10)], [])
    assert order(hits) == ["short", "long"]


def test_further_passages_of_one_message_stand_back() -> None:
    hits = Hits(
        [hit("a", 3.0), hit("a", 2.9, passage=1), hit("b", 2.8, session="s-a"), hit("c", 0.0)], []
    )
    assert order(hits)[:3] == ["a", "b", "a"]


def test_a_session_that_holds_several_good_ones_is_preferred() -> None:
    hits = Hits(
        [hit("a", 3.0, session="x"), hit("b", 2.0, session="x"), hit("c", 1.0, session="y"),
         hit("d", 1.0, session="x")],
        [],
    )  # fmt: skip
    assert order(hits)[-2:] == ["d", "c"]


def test_the_floor_judges_the_raw_evidence() -> None:
    hits = Hits([hit("words", 0.1)], [hit("near", 0.5), hit("far", 0.1)])
    floor = CONFIG.model_copy(update={"floor": 0.3})
    assert set(order(hits, PLAIN, floor)) == {"words", "near"}
    assert set(order(hits)) == {"words", "near", "far"}


def test_an_english_models_scores_count_less_for_a_question_in_another_language() -> None:
    hits = Hits([hit("words", 2.0), hit("meaning", 1.9)], [hit("meaning", 0.9), hit("words", 0.8)])
    foreign = PLAIN._replace(english=False)
    for question, english_model, best in (
        (PLAIN, True, "meaning"), (foreign, False, "meaning"), (foreign, True, "words"),
    ):  # fmt: skip
        found = fuse(hits, question, CONFIG, english_model=english_model)
        assert found[0].payload["message"] == best


@given(st.randoms(use_true_random=False))
def test_any_hits_give_each_candidate_once_best_first(rng: random.Random) -> None:
    def some() -> list[Hit]:
        names = rng.sample("abcdefgh", rng.randint(0, 8))
        return sorted(
            (
                hit(n, rng.choice((0.0, -1.0, 1e-9, rng.random(), 1e6)), passage=rng.randint(0, 2))
                for n in names
            ),
            key=lambda h: -h.score,
        )

    hits = Hits(some(), some())
    found = fuse(hits, PLAIN, CONFIG)
    assert {(c.payload["message"], c.payload["passage"]) for c in found} == {
        (h.payload["message"], h.payload["passage"]) for h in (*hits.lexical, *hits.dense)
    }
    assert len(found) == len({h.id for h in (*hits.lexical, *hits.dense)})
    scores = [c.score for c in found]
    assert scores == sorted(scores, reverse=True)
    assert all(math.isfinite(score) for score in scores)
    assert found == fuse(hits, PLAIN, CONFIG)
