"""`GET /v1/memories`, as docs/contract.md has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from system.process import Service

from api.conftest import CANARY
from api.shapes import MEMORY, assert_problem, indexed, memories, moment, record


@pytest.fixture(scope="module")
def told(service: Service) -> Iterator[httpx.Client]:
    """A user with two sessions of dated messages."""
    with service.sync_client(f"{CANARY}-memories") as client:
        record(
            client,
            "spring",
            {"role": "user", "content": f"I planted a {CANARY} tree behind the barn",
             "created_at": "2024-03-01T10:00:00Z"},
            {"role": "assistant", "content": "Trees behind barns need wind protection",
             "created_at": "2024-03-01T10:01:00Z"},
        )  # fmt: skip
        record(
            client,
            "autumn",
            {"role": "user", "content": "My brother Leopold repairs church organs in Graz",
             "created_at": "2024-10-01T10:00:00Z", "speaker": "Anna"},
            {"role": "assistant", "content": "Organs are a rare trade",
             "created_at": "2024-10-01T10:01:00Z"},
            {"role": "user", "content": "The harvest was poor this year",
             "created_at": "2024-10-02T10:00:00Z"},
        )  # fmt: skip
        indexed(client, "spring")
        indexed(client, "autumn")
        yield client


def contents(found: Any) -> list[str]:
    return [item["content"] for item in found["memories"]]


def test_a_query_finds_by_meaning_and_by_words(told: httpx.Client) -> None:
    found = memories(told, q="Who mends musical instruments in the church?")
    assert set(found) == {"memories", "degraded"}, "the query is not echoed"
    assert found["degraded"] == []
    best = found["memories"][0]
    assert set(best) == MEMORY
    assert "Leopold" in best["content"]
    assert best["session_id"] == "autumn"
    assert best["seq"] == 1
    assert best["role"] == "user"
    assert moment(best["created_at"]).isoformat() == "2024-10-01T10:00:00+00:00"
    assert isinstance(best["dense_rank"], int)
    assert isinstance(best["lexical_rank"], int)
    scores = [item["score"] for item in found["memories"]]
    assert scores == sorted(scores, reverse=True)
    assert len({item["message_id"] for item in found["memories"]}) == len(scores)


def test_without_a_query_it_is_a_plain_list_newest_first(told: httpx.Client) -> None:
    found = memories(told)
    times = [item["created_at"] for item in found["memories"]]
    assert times == sorted(times, reverse=True)
    assert len(times) == 5
    for item in found["memories"]:
        assert set(item) == MEMORY
        assert item["dense_rank"] is None
        assert item["lexical_rank"] is None
    assert [contents(memories(told, limit=n)) for n in range(1, 6)] == [
        contents(found)[:n] for n in range(1, 6)
    ]


@pytest.mark.parametrize("query", [None, "tree organs harvest wind"])
def test_the_filters_narrow_both_forms(told: httpx.Client, query: str | None) -> None:
    q = {} if query is None else {"q": query}
    spring = contents(memories(told, session_id="spring", **q))
    assert len(spring) == 2
    assert f"I planted a {CANARY} tree behind the barn" in spring
    users = memories(told, role="user", **q)["memories"]
    assert {item["role"] for item in users} == {"user"}
    assert len(users) == 3
    assert {i["role"] for i in memories(told, role="assistant", **q)["memories"]} == {"assistant"}
    since = contents(memories(told, since="2024-10-01T10:01:00Z", **q))
    assert sorted(since) == ["Organs are a rare trade", "The harvest was poor this year"]
    until = contents(memories(told, until="2024-10-01T10:00:00", **q))
    assert sorted(until) == sorted(spring)
    east = contents(memories(told, since="2024-10-02T12:00:00+02:00", **q))
    assert east == ["The harvest was poor this year"]
    assert contents(memories(told, since="2025-01-01T00:00:00Z", **q)) == []
    assert contents(memories(told, session_id="winter", **q)) == []
    both = memories(told, session_id="autumn", role="user", limit=1, **q)["memories"]
    assert len(both) == 1


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "since=yesterday", "until=x", "role=system", "role=",
     "session_id=a%20b", "session_id=%00", "session_id=abc%0a", "q=%00", "q=", "q=%20",
     "since=0001-01-01T00:00:00%2B14:00", "until=9999-12-31T23:59:59-14:00"],
)  # fmt: skip
def test_queries_that_are_none_are_400(told: httpx.Client, query: str) -> None:
    assert_problem(told.get(f"/v1/memories?{query}"), 400, "invalid_request")


def test_odd_queries_are_no_crash(told: httpx.Client) -> None:
    for query in (
        "' OR 1=1 --", '{"$gt": ""}', "?" * 900, "<|endoftext|>", "🦊", "\u202e", "a\nb",
        "北京", "%", "*", "NEAR(a b)", '"', "\\",
    ):  # fmt: skip
        assert told.get("/v1/memories", params={"q": query}).status_code == 200, query
    assert told.get("/v1/memories?q=%ff%fe").status_code in (200, 400)


def test_a_user_without_memories_has_an_empty_list(client: httpx.Client) -> None:
    assert memories(client) == {"memories": [], "degraded": []}
    assert memories(client, q="anything")["memories"] == []
