"""What the indexes of MongoDB hold, and the filters for its collections."""

from __future__ import annotations

from datetime import timedelta
from math import inf

import pytest

from memory.models import NEVER
from memory.stores.codec import Codec
from memory.stores.mongo.collections import (
    COLLECTIONS,
    INDEXES,
    at,
    purge_at,
    within,
)
from unit.builders import NOON, USER, turn

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
    assert purge_at(expires, grace_seconds) == expected  # type: ignore[arg-type]


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
    always = set(Codec().turn_document(turn("q")))
    for index in INDEXES:
        assert index.collection in COLLECTIONS
        if index.sparse:
            assert not always & {name for name, _ in index.keys} - {"erasing"}
