"""The documents of the log: what they hold when they are written."""

from __future__ import annotations

from memory import Incoming, TurnRequest, User
from memory.log.transitions import accepted_turn, answered, interrupted, recorded_turn, recounted
from memory.models import session_key
from memory.tokens import EstimatedCounter, TiktokenCounter

ANNA = User("acme", "anna")
TEXT = "Grüße an die Familie 👩‍👩‍👧‍👦"
REQUEST = TurnRequest(user=ANNA, session_id="s", question=TEXT)
KEY = session_key(ANNA.key, "s")


def test_an_accepted_turn_holds_its_question_and_an_empty_running_answer() -> None:
    counter = EstimatedCounter()
    turn = accepted_turn(REQUEST, KEY, 7, ttl=60.0, lease_seconds=10.0, counter=counter)
    assert turn.user is not None
    assert turn.assistant is not None
    assert (turn.seq, turn.last_seq, turn.status) == (7, 8, "running")
    assert (turn.user.content, turn.user.status) == (TEXT, "done")
    assert (turn.assistant.content, turn.assistant.status) == ("", "running")
    assert (turn.expires_at - turn.recorded_at).total_seconds() == 60
    again = accepted_turn(REQUEST, KEY, 7, ttl=60.0, lease_seconds=10.0, counter=counter)
    assert again.id == turn.id
    assert again.fencing_token != turn.fencing_token, "the token tells the writers apart"


def test_an_interrupted_turn_keeps_what_was_answered() -> None:
    counter = EstimatedCounter()
    turn = accepted_turn(REQUEST, KEY, 1, ttl="never", lease_seconds=10.0, counter=counter)
    partial = answered(turn, "so far", status="running", message_status="running", counter=counter)
    ended = interrupted(partial)
    assert ended.assistant is not None
    assert (ended.status, ended.assistant.status) == ("interrupted", "interrupted")
    assert ended.assistant.content == "so far"


def test_tokens_of_another_counter_are_counted_anew(counter: TiktokenCounter) -> None:
    estimate = EstimatedCounter()
    turn = recorded_turn(
        ANNA, "s", 1, Incoming(role="user", content=TEXT), ttl="never", counter=estimate
    )
    assert turn.user is not None
    assert recounted(turn, estimate) is turn
    exact = recounted(turn, counter)
    assert exact.user is not None
    assert exact.user.tokens == counter.count(TEXT) != turn.user.tokens
    assert recounted(exact, counter) is exact
