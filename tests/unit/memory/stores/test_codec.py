"""How values become what is stored, and come back."""

from __future__ import annotations

import msgspec

from memory.models import NEVER, Segment, Session, Summary, Turn, new_session
from memory.stores.codec import Codec
from unit.builders import NOON, SESSION, USER, turn

CODEC = Codec()
KEY = new_session(USER.key, SESSION, NOON).key


def test_keys_that_a_caller_chose_are_never_names_of_fields() -> None:
    free = {"$where": "1", "a.b": {"$gt": ""}, "\0": [10**30]}
    whole = msgspec.structs.replace(turn("q"), metadata=free, usage={"a.b": 1})
    document = CODEC.turn_document(whole)
    assert isinstance(document["metadata"], str)
    assert isinstance(document["usage"], str)
    assert CODEC.turn_from_document(document) == whole
    session = msgspec.structs.replace(new_session(USER.key, SESSION, NOON), metadata=free)
    assert CODEC.session_from_document(CODEC.session_document(session)) == session
    assert isinstance(CODEC.session_update(KEY, {"metadata": free})["$set"]["metadata"], str)


def test_dates_stay_dates() -> None:
    document = CODEC.turn_document(turn("q", at=NOON))
    assert document["user"]["created_at"] == document["expires_at"] - (NEVER - NOON) == NOON


def test_a_session_is_marked_while_it_is_erased_and_only_then() -> None:
    session = new_session(USER.key, SESSION, NOON)
    assert "erasing" not in CODEC.session_document(session)
    erased = msgspec.structs.replace(session, erasing=True)
    assert CODEC.session_document(erased)["erasing"] is True
    assert CODEC.session_update(KEY, {"erasing": True}) == {"$set": {"erasing": True}}
    assert CODEC.session_update(KEY, {"erasing": False, "title": "x"}) == {
        "$set": {"title": "x"}, "$unset": {"erasing": ""}
    }  # fmt: skip


def test_a_summary_is_set_as_a_whole() -> None:
    made = CODEC.session_update(KEY, {"summary": Summary(text="x", version=2)})["$set"]
    assert set(made) == {"summary"}
    assert made["summary"]["version"] == 2


def test_the_names_that_are_stored_do_not_change() -> None:
    """Another release or worker reads them: a new name in the code needs `field(name=…)`."""
    row = CODEC.turn_row(turn("q", "a"))
    for stored in (CODEC.turn_document(turn("q", "a")), msgspec.json.decode(row.body)):
        assert set(stored) - {"_id", "id"} == {
            "user_key", "session_key", "session_id", "seq", "last_seq", "status", "token", "user",
            "assistant", "idempotency", "created_at", "recorded_at", "expires_at", "attempt",
            "until", "body_hash", "receipt", "prefix_marks", "usage", "finish_reason", "error",
            "metadata", "model", "counter",
        }  # fmt: skip
        assert set(stored["user"]) == {
            "id", "seq", "role", "content", "status", "tokens", "created_at", "recorded_at",
            "client_id", "speaker", "turn_id",
        }  # fmt: skip
    stored = msgspec.json.decode(CODEC.session_row(new_session(USER.key, SESSION, NOON)).body)
    assert set(stored) == {
        "key", "user_key", "session_id", "title", "created_at", "updated_at", "first_seq",
        "last_seq", "summary", "lexical_through", "dense_through", "facts_through", "expires_at",
        "ttl_seconds", "metadata", "erasing",
    }  # fmt: skip
    assert set(stored["summary"]) == {
        "text", "version", "covers_through", "retired", "tokens", "degraded", "expires_at",
        "unfiled",
    }  # fmt: skip
    segment = Segment(session_key=KEY, first_seq=1, last_seq=2, text="x", expires_at=NEVER)
    stored = msgspec.json.decode(CODEC.segment_row(segment).body)
    assert set(stored) == {"session_key", "first_seq", "last_seq", "text", "expires_at", "begun"}


class Loud(Codec):
    """Stores everything in capitals, and reads it in small letters."""

    def seal(self, value):  # type: ignore[no-untyped-def]
        return _in(str.upper, value)

    def unseal(self, value):  # type: ignore[no-untyped-def]
        return _in(str.lower, value)


def _in(case, value):  # type: ignore[no-untyped-def]
    if isinstance(value, Session):
        return msgspec.structs.replace(value, title=case(value.title))
    if isinstance(value, Turn):
        assert value.user is not None
        user = msgspec.structs.replace(value.user, content=case(value.user.content))
        return msgspec.structs.replace(value, user=user)
    return msgspec.structs.replace(value, text=case(value.text))


def test_every_value_passes_through_seal_and_unseal() -> None:
    loud, asked = Loud(), turn("said")
    titled = msgspec.structs.replace(new_session(USER.key, SESSION, NOON), title="said")
    segment = Segment(session_key=KEY, first_seq=1, last_seq=2, text="said", expires_at=NEVER)
    for stored in (
        loud.turn_row(asked).body, loud.turn_document(asked), loud.turn_fields(asked),
        loud.session_row(titled).body, loud.session_document(titled),
        loud.session_update(KEY, {"title": "said"}),
        loud.segment_row(segment).body, loud.segment_document(segment),
    ):  # fmt: skip
        assert "SAID" in str(stored)
        assert "said" not in str(stored)
    assert loud.turn_from_row(loud.turn_row(asked).body) == asked
    assert loud.turn_from_document(loud.turn_document(asked)) == asked
    assert loud.session_from_row(loud.session_row(titled).body, 0, 0) == titled
    assert loud.session_from_document(loud.session_document(titled)) == titled
    assert loud.segment_from_row(loud.segment_row(segment).body) == segment
    assert loud.segment_from_document(loud.segment_document(segment)) == segment
