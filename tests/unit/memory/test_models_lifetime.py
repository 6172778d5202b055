from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from memory.models import NEVER, Session, Summary, expiry_of, new_session, session_key
from unit.builders import NOON, USER, turn


def session(**changes: object) -> Session:
    return msgspec.structs.replace(new_session(USER.key, "chat", NOON), **changes)


@pytest.mark.parametrize("ttl", ["session", math.inf, 1e15, 1e300])
def test_what_has_no_duration_never_expires(ttl: float | str) -> None:
    assert expiry_of(NOON, ttl) == NEVER


def test_a_duration_counts_from_the_moment() -> None:
    assert expiry_of(NOON, 90.5) == NOON + timedelta(seconds=90.5)
    assert expiry_of(NOON, 0.0) == NOON
    assert expiry_of(datetime(9998, 12, 31, tzinfo=UTC), 10 * 86400.0) == NEVER


def test_a_session_ends_a_while_after_its_last_activity() -> None:
    hour = timedelta(hours=1)
    assert not session().has_ended(None, NOON + hour / 2, 3600)
    assert session().has_ended(None, NOON + hour, 3600)
    assert not session().has_ended(turn("hi", at=NOON + hour), NOON + hour, 3600)
    assert not session(updated_at=NOON + hour).has_ended(turn("hi"), NOON + hour, 3600)
    assert not session().has_ended(None, NOON + 1000 * hour, math.inf)


def test_a_sessions_own_ttl_wins_over_the_default() -> None:
    own = session(ttl_seconds=60.0)
    assert own.ends_at(NOON, 3600) == NOON + timedelta(minutes=1)
    assert own.has_ended(None, NOON + timedelta(minutes=2), math.inf)
    assert session(ttl_seconds=math.inf).ends_at(NOON, 60) == NEVER


def test_a_session_that_is_being_erased_has_ended() -> None:
    assert session(erasing=True).has_ended(None, NOON, math.inf)


def test_a_new_session_is_empty() -> None:
    fresh = new_session(USER.key, "chat", NOON)
    assert fresh.key == session_key(USER.key, "chat")
    assert (fresh.first_seq, fresh.last_seq, fresh.title) == (1, 0, "")
    assert fresh.expires_at == NEVER


def test_a_session_that_begins_anew_keeps_its_settings_and_goes_on_with_the_next_seq() -> None:
    old = session(
        title="Dogs", metadata={"a": 1}, ttl_seconds=60.0, last_seq=8, lexical_through=8,
        summary=Summary(text="Bruno.", version=3, covers_through=4),
    )  # fmt: skip
    fresh = old.begun_anew(10)
    assert (fresh.title, fresh.first_seq, fresh.last_seq) == ("", 11, 10)
    assert fresh.summary == Summary(version=4, covers_through=10)
    assert (fresh.metadata, fresh.ttl_seconds, fresh.lexical_through) == ({"a": 1}, 60.0, 8)
