"""The judge of the torture sees each kind of wrong that it is there to see."""

from __future__ import annotations

from typing import Any

from torture.said import Attempt, Said, echo
from torture.verdict import Verdict, earlier, judge, lacking

PLACE = ("zq00000001", "s0")


def said(number: int = 0, *, seq: int = 1, done: bool = True, place: Any = PLACE) -> Said:
    one = Said(*place, "t0", number)
    turn = f"turn{seq}"
    attempt = Attempt(status=200, turn_id=turn, seq=seq)
    if done:
        attempt.text = echo(one.text)
        attempt.ended, attempt.message_id = "done", f"{turn}.a"
    else:
        attempt.broken = True
    one.attempts.append(attempt)
    return one


def stored(one: Said, seq: int, **changes: Any) -> list[dict[str, Any]]:
    answer = {"content": echo(one.text), "status": "done", "id": f"turn{seq}.a", **changes}
    return [
        {"seq": seq, "role": "user", "content": one.text, "status": "done", "id": f"turn{seq}.u"},
        {"seq": seq + 1, "role": "assistant", **answer},
    ]


def prompt(one: Said, *before: Said) -> dict[str, Any]:
    messages = [{"role": "user", "content": other.text} for other in (*before, one)]
    return {"messages": messages, "options": {"stream": True}}


def of(one: Said | list[Said], history: list[dict[str, Any]], prompts: Any = None) -> Verdict:
    lines = one if isinstance(one, list) else [one]
    return judge(lines, {PLACE: history}, prompts)


def test_what_is_stored_as_it_was_told_is_right() -> None:
    first, second = said(), said(1, seq=3)
    history = [*stored(first, 1), *stored(second, 3)]
    verdict = of([first, second], history, [prompt(first), prompt(second, first)])
    assert verdict.wrong == []
    assert (verdict.turns, verdict.acknowledged, verdict.answered, verdict.calls) == (2, 2, 2, 2)


def test_an_accepted_turn_that_is_not_there_is_lost() -> None:
    assert len(of(said(done=False), []).lost) == 1


def test_an_answer_that_differs_from_the_one_that_was_told_is_lost() -> None:
    one = said()
    for changes in ({"content": ""}, {"status": "interrupted"}, {"id": "other"}):
        assert of(one, stored(one, 1, **changes)).lost


def test_an_unfinished_answer_may_be_a_part_and_must_say_so() -> None:
    one = said(done=False)
    part = echo(one.text)[:20]
    assert of(one, stored(one, 1, content=part, status="interrupted")).wrong == []
    assert of(one, stored(one, 1, content=part)).mixed
    assert of(one, stored(one, 1, content=part, status="running")).disordered


def test_one_message_twice_is_doubled() -> None:
    one = said()
    assert of(one, [*stored(one, 1), *stored(one, 3)]).doubled
    one.attempts.append(Attempt(turn_id="turn3", seq=3))
    assert of(one, stored(one, 1)).doubled


def test_a_model_that_is_called_again_without_a_fault_is_doubled() -> None:
    one = said()
    assert of(one, stored(one, 1), [prompt(one), prompt(one)]).doubled
    one.attempts.insert(0, Attempt(turn_id="turn1", seq=1, broken=True))
    assert of(one, stored(one, 1), [prompt(one), prompt(one)]).doubled == []


def test_a_turn_that_is_asked_for_again_must_be_replayed() -> None:
    one = said()
    one.again = said().attempts[0]
    assert of(one, stored(one, 1)).doubled
    one.again.replayed = True
    assert of(one, stored(one, 1)).wrong == []


def test_gaps_and_another_order_are_seen() -> None:
    first, second = said(), said(1, seq=3)
    assert of(first, stored(first, 3)).disordered
    later, earlier_one = stored(first, 3, id="turn1.a"), stored(second, 1, id="turn3.a")
    assert of([first, second], [*earlier_one, *later]).disordered


def test_what_another_user_said_is_seen_in_histories_answers_and_prompts() -> None:
    one, other = said(), said(place=("zq00000002", "s0"))
    assert of(one, [*stored(one, 1), *stored(other, 3)]).mixed
    assert of(one, stored(one, 1, content=echo(other.text))).mixed
    assert of(one, stored(one, 1), [prompt(one, other)]).mixed


def test_a_prompt_that_lacks_an_earlier_turn_is_seen() -> None:
    first, second = said(), said(1, seq=3)
    history = [*stored(first, 1), *stored(second, 3)]
    whole = [prompt(first), prompt(second, first)]
    assert earlier(whole[1]) == [first.marker]
    assert lacking(whole, {PLACE: history}) == []
    assert len(lacking([prompt(second)], {PLACE: history})) == 1
