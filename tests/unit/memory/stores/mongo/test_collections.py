"""How values become documents of MongoDB, and what its indexes hold."""

from __future__ import annotations

from datetime import timedelta
from math import inf

import msgspec
import pytest

from memory.models import NEVER, Summary
from memory.sessions.lifetime import new_session
from memory.stores.mongo.collections import (
    COLLECTIONS,
    INDEXES,
    at,
    purge_at,
    session_document,
    session_update,
    to_session,
    to_turn,
    turn_document,
    within,
)
from unit.builders import NOON, SESSION, USER, turn

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("expires", "grace_seconds", "expected"),
    [
        (NOON, 0.0, {"purge_at": NOON}),
        (NOON, 86400.0, {"purge_at": NOON + DAY}),
        (NOON, inf, {}),
        (NEVER, 0.0, {}),
        (NEVER - DAY, 1e9, {}),
        (NOON, 1e15, {}),
    ],
)
def test_a_document_is_purged_some_time_after_it_expired(
    expires: object, grace_seconds: float, expected: object
) -> None:
    document = turn_document(turn("q", expires=expires), grace_seconds)  # type: ignore[arg-type]
    assert {name: at for name, at in document.items() if name == "purge_at"} == expected
    assert purge_at(expires, grace_seconds) == expected  # type: ignore[arg-type]


def test_keys_that_a_caller_chose_are_never_names_of_fields() -> None:
    free = {"$where": "1", "a.b": {"$gt": ""}, "\0": [10**30]}
    whole = msgspec.structs.replace(turn("q"), metadata=free, usage={"a.b": 1})
    document = turn_document(whole, 0.0)
    assert isinstance(document["metadata"], str)
    assert isinstance(document["usage"], str)
    assert to_turn(document) == whole
    session = msgspec.structs.replace(new_session(USER.key, SESSION, NOON), metadata=free)
    assert to_session(session_document(session)) == session
    assert isinstance(session_update({"metadata": free})["$set"]["metadata"], str)


def test_dates_stay_dates() -> None:
    document = turn_document(turn("q", at=NOON), 0.0)
    assert document["user"]["created_at"] == document["expires_at"] - (NEVER - NOON) == NOON


def test_a_session_is_marked_while_it_is_erased_and_only_then() -> None:
    session = new_session(USER.key, SESSION, NOON)
    assert "erasing" not in session_document(session)
    assert session_document(msgspec.structs.replace(session, erasing=True))["erasing"] is True
    assert session_update({"erasing": True}) == {"$set": {"erasing": True}}
    assert session_update({"erasing": False, "title": "x"}) == {
        "$set": {"title": "x"}, "$unset": {"erasing": ""}
    }  # fmt: skip


def test_a_summary_is_set_as_a_whole() -> None:
    made = session_update({"summary": Summary(text="x", version=2)})["$set"]
    assert set(made) == {"summary"}
    assert made["summary"]["version"] == 2


def test_every_filter_names_the_user_by_whom_a_cluster_is_sharded() -> None:
    one = turn("q")
    assert at(one.id) == {"_id": one.id, "user_key": USER.key}
    assert within(one.session_key) == {"user_key": USER.key, "session_key": one.session_key}
    for index in INDEXES:
        if index.unique:
            assert index.keys[0] == ("user_key", 1), "else a cluster refuses it"


def test_indexes_have_names_of_their_own_and_sparse_ones_only_fields_that_may_be_absent() -> None:
    names = [(index.collection, index.name) for index in INDEXES]
    assert len(set(names)) == len(names)
    always = set(turn_document(turn("q"), inf)) | {"_id"}
    for index in INDEXES:
        assert index.collection in COLLECTIONS
        if index.sparse:
            assert not always & {name for name, _ in index.keys} - {"erasing"}
