from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from memory.models import Turn, User, now, session_key, turn_id, turn_of, user_key
from unit.builders import message, turn
from unit.texts import any_text


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_two_users_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (user_key(*one) == user_key(*other)) == (one == other)


def test_names_with_separators_in_them_are_told_apart() -> None:
    assert user_key("a", "b\0c") != user_key("a\0b", "c")
    assert User("a", "b").key == user_key("a", "b")


def test_ids_tell_nothing_and_name_their_document() -> None:
    user = user_key("acme", "anna")
    session = session_key(user, "my secret plans")
    id_ = turn_id(session, 7)
    assert session.startswith(f"{user}.")
    assert id_ == f"{session}:0000000007"
    assert turn_of(f"{id_}.u") == turn_of(f"{id_}.a") == id_
    assert "secret" not in id_
    assert "anna" not in id_
    assert session_key(user, "x") != session_key(user, "y")
    assert turn_of("nonsense") == ""


def test_ids_of_one_session_sort_by_their_seq() -> None:
    ids = [turn_id("s", seq) for seq in (1, 2, 9, 10, 99, 100, 10**9)]
    assert ids == sorted(ids)


def test_now_is_utc_in_whole_milliseconds() -> None:
    moment = now()
    assert moment.tzinfo is not None
    assert moment.utcoffset() is not None
    assert moment.microsecond % 1000 == 0


@given(any_text, any_text)
def test_values_survive_as_json(question: str, answer: str) -> None:
    whole = turn(question, answer, speaker="Zoë")
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Turn) == whole
    assert whole.messages == (whole.user, whole.assistant)
    assert turn("told").messages == (turn("told").user,)
    assert message(question).content == question
