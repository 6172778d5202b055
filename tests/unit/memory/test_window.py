from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from memory.models import Turn
from memory.tokens import MESSAGE_OVERHEAD_TOKENS
from memory.window import EARLIER, render, select, shown, turn_tokens
from unit.builders import counter, dialogue, message, turn
from unit.texts import said


def turns_of(kinds: Sequence[tuple[str, str, str | None]]) -> list[Turn]:
    """Turns from (kind, text, speaker), numbered as the log numbers them."""
    turns: list[Turn] = []
    seq = 1
    for kind, text, speaker in kinds:
        if kind == "turn":
            made = turn(text, f"About {text}", seq=seq, speaker=speaker)
        elif kind == "failed":
            made = turn(text, "", seq=seq, status="failed", speaker=speaker)
        elif kind == "told":
            made = turn(text, seq=seq, speaker=speaker)
        else:
            made = turn(None, text, seq=seq)
        turns.append(made)
        seq = made.last_seq + 1
    return turns


logs = st.lists(
    st.tuples(
        st.sampled_from(("turn", "failed", "told", "answer")),
        said,
        st.sampled_from((None, None, "Bruno")),
    ),
    max_size=7,
).map(turns_of)
ROOM = 100_000


def rendered(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    window = render(turns, budget_tokens=ROOM, counter=counter())
    return [(m.role, m.content) for m in window.messages]


def test_oldest_messages_leave_the_window_first() -> None:
    turns = dialogue([(f"question {n}", f"answer {n}") for n in range(10)])
    room = sum(turn_tokens(t, counter()) for t in turns[-3:])
    assert select(turns, budget_tokens=room, counter=counter()) == (turns[-3:], False)
    assert select(turns, budget_tokens=room - 1, counter=counter()) == (turns[-2:], False)


def test_a_window_with_room_for_all_holds_all() -> None:
    turns = dialogue([("one", "two")] * 3)
    assert select(turns, budget_tokens=ROOM, counter=counter()) == (turns, False)
    assert select([], budget_tokens=ROOM, counter=counter()) == ([], False)


@given(logs, st.integers(0, 400))
def test_the_window_is_a_suffix_of_whole_turns_with_the_newest_in_it(
    turns: list[Turn], room: int
) -> None:
    chosen, cut = select(turns, budget_tokens=room, counter=counter())
    assert list(chosen) == turns[len(turns) - len(chosen) :]
    costs = [turn_tokens(t, counter()) for t in turns]
    if turns:
        assert chosen
        assert cut == (costs[-1] > room)
    if not cut:
        assert sum(costs[len(turns) - len(chosen) :]) <= room
        left_out = len(turns) - len(chosen)
        assert not left_out or sum(costs[left_out - 1 :]) > room


@given(logs)
def test_messages_alternate_and_begin_with_the_user(turns: list[Turn]) -> None:
    window = render(turns, budget_tokens=ROOM, counter=counter())
    roles = [m.role for m in window.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(m.content for m in window.messages)


@given(logs)
def test_every_living_message_stands_in_the_window_in_order(turns: list[Turn]) -> None:
    window = render(turns, budget_tokens=ROOM, counter=counter())
    whole = "\n\n".join([*(m.content for m in window.messages), window.trailing])
    place = 0
    expected = [m for t in turns for m in shown(t)]
    assert list(window.counted) == expected
    for m in expected:
        text = f"{m.speaker}: {m.content}" if m.speaker else m.content
        place = whole.index(text, place) + len(text)


@given(logs)
def test_a_longer_log_only_appends_to_what_was_rendered(turns: list[Turn]) -> None:
    """A provider's prompt cache keeps hitting: joined neighbours aside, nothing before changes."""
    for n in range(len(turns)):
        earlier, later = rendered(turns[:n]), rendered(turns[: n + 1])
        if turns[n].messages[0].role == "user":
            assert later[: len(earlier)] == earlier
        elif earlier:  # a recorded answer may join the answer before it
            assert later[: len(earlier) - 1] == earlier[:-1]
            assert later[len(earlier) - 1][1].startswith(earlier[-1][1])


@given(logs)
def test_the_same_log_always_renders_alike(turns: list[Turn]) -> None:
    assert rendered(turns) == rendered(list(turns))


def test_empty_and_forgotten_messages_are_passed_over() -> None:
    turns = [
        turn("first", "", seq=1, status="failed"),
        turn("second", "answer", seq=3),
    ]
    assert rendered(turns) == [("user", "first\n\nsecond"), ("assistant", "answer")]
    forgotten = message("secret", status="forgotten")
    assert shown(turn("x")) != []
    assert shown(_with_user(turn("x", "y"), forgotten))[0].content == "y"


def _with_user(made: Turn, user: object) -> Turn:
    import msgspec

    return msgspec.structs.replace(made, user=user)


def test_neighbours_of_one_role_are_joined_by_a_blank_line() -> None:
    turns = turns_of([("told", "one", None), ("told", "two", "Bruno"), ("answer", "three", None)])
    assert rendered(turns) == [("user", "one\n\nBruno: two"), ("assistant", "three")]


def test_a_leading_assistant_message_is_preceded_by_the_fixed_user_line() -> None:
    assert rendered(turns_of([("answer", "hello", None)])) == [
        ("user", EARLIER),
        ("assistant", "hello"),
    ]


def test_trailing_user_messages_are_left_for_the_last_message() -> None:
    turns = turns_of([("turn", "q", None), ("told", "one", None), ("failed", "two", None)])
    window = render(turns, budget_tokens=ROOM, counter=counter())
    assert [m.role for m in window.messages] == ["user", "assistant"]
    assert window.trailing == "one\n\ntwo"


@given(said, said, st.integers(1, 120))
def test_a_newest_turn_that_is_too_long_is_cut_visibly(
    question: str, answer: str, room: int
) -> None:
    turns = [turn(question, answer)]
    chosen, cut = select(turns, budget_tokens=room, counter=counter())
    assert list(chosen) == turns
    if not cut:
        return
    window = render(turns, budget_tokens=room, counter=counter(), cut=True)
    texts = [*(m.content for m in window.messages if m.content != EARLIER), window.trailing]
    parts = [text for text in texts if text]
    assert any(" […] " in text for text in parts) or len(parts) < 2
    assert sum(counter().count(text) + MESSAGE_OVERHEAD_TOKENS for text in parts) <= room or not (
        parts
    )


def test_what_a_short_message_leaves_goes_to_the_long_one() -> None:
    turns = [turn("why?", "because " * 400)]
    window = render(turns, budget_tokens=100, counter=counter(), cut=True)
    assert window.messages[0].content == "why?"
    assert counter().count(window.messages[1].content) >= 80


def test_a_turn_costs_its_contents_speaker_and_overheads() -> None:
    one = turn("hello world", "hello world", speaker="Bruno")
    speaker = counter().count("Bruno: ")
    assert turn_tokens(one, counter()) == 2 + speaker + 4 + 2 + 4
