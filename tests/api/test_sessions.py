"""Sessions: list, read, change, delete, as docs/contract.md has them."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import httpx
import pytest
from waiting import PATIENCE_SECONDS, wait_for

from api.conftest import CANARY
from api.shapes import (
    assert_problem,
    assert_session,
    context,
    history,
    indexed,
    memories,
    moment,
    record,
    same_problem,
    say,
)


def get(client: httpx.Client, session: str) -> Any:
    response = client.get(f"/v1/sessions/{session}")
    assert response.status_code == 200, response.text
    return response.json()


def change(client: httpx.Client, session: str, **changes: Any) -> httpx.Response:
    return client.patch(f"/v1/sessions/{session}", json=changes)


def test_a_session_tells_what_it_holds(client: httpx.Client, session: str) -> None:
    say(client, session, f"hello {CANARY}")
    found = get(client, session)
    assert_session(
        found, session_id=session, title=f"hello {CANARY}", messages=2, expires_at=None,
        metadata={}, facts_through=0,
        summary={"text": "", "version": 0, "covers_through": 0},
    )  # fmt: skip
    wait_for(lambda: get(client, session)["lexical_through"] == 2)
    wait_for(lambda: get(client, session)["dense_through"] == 2)
    record(client, session, "one more")
    assert get(client, session)["messages"] == 3


def test_sessions_are_listed_by_their_newest_activity(client: httpx.Client, session: str) -> None:
    names = [f"{session}-{n}" for n in range(5)]
    for name in names:
        record(client, name, "hello")
    record(client, names[1], "again")
    expected = [names[1], names[4], names[3], names[2], names[0]]
    page = client.get("/v1/sessions").json()
    assert set(page) == {"sessions", "next_cursor"}
    assert [s["session_id"] for s in page["sessions"]] == expected
    assert page["next_cursor"] is None
    for found in page["sessions"]:
        assert_session(found)
    for limit in range(1, 7):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            query = {"limit": limit} if cursor is None else {"limit": limit, "cursor": cursor}
            page = client.get("/v1/sessions", params=query).json()
            assert len(page["sessions"]) <= limit
            seen += [s["session_id"] for s in page["sessions"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == expected, limit


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "e30=",
        base64.urlsafe_b64encode(b"0001-01-01T00:00:00 x").decode(),
        base64.urlsafe_b64encode(b"9999-12-31T23:59:59-14:00 x").decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        "' OR 1=1 --",
    ],
)
def test_a_foreign_cursor_is_no_crash(client: httpx.Client, cursor: str) -> None:
    response = client.get("/v1/sessions", params={"cursor": cursor})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert_problem(response, 400, "invalid_request")


def test_title_and_metadata_can_be_changed(client: httpx.Client, session: str) -> None:
    say(client, session, "hello")
    before = get(client, session)
    metadata = {"tags": ["a", 1], "deep": {"x": None}}
    response = change(client, session, title="Renamed", metadata=metadata)
    assert response.status_code == 200
    assert_session(response.json(), title="Renamed", metadata=metadata, messages=2)
    assert response.json() == get(client, session)
    assert change(client, session, title="Twice").json()["metadata"] == metadata
    say(client, session, "goodbye")
    after = get(client, session)
    assert (after["title"], after["metadata"]) == ("Twice", metadata)
    assert after["created_at"] == before["created_at"]
    assert change(client, session).status_code == 200, "changing nothing is no error"


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [("12h", 12 * 3600), ("30d", 30 * 86400), (3600, 3600), (0.5e9, 0.5e9), ("never", None),
     (1e300, None)],
)  # fmt: skip
def test_a_session_can_have_its_own_time(
    client: httpx.Client, session: str, ttl: Any, seconds: float | None
) -> None:
    say(client, session, "hello")
    found = change(client, session, ttl=ttl).json()
    if seconds is None:
        assert found["expires_at"] is None
    else:
        expires = moment(found["updated_at"]) + timedelta(seconds=seconds)
        assert abs(moment(found["expires_at"]) - expires) < timedelta(seconds=1)
    assert get(client, session)["expires_at"] == found["expires_at"]
    say(client, session, "later")
    later = get(client, session)
    assert (later["expires_at"] is None) is (seconds is None)
    if seconds is not None:
        assert moment(later["expires_at"]) > moment(found["expires_at"])
    assert change(client, session, ttl=None).json()["expires_at"] is None, "the default: never"


@pytest.mark.parametrize(
    "changes",
    [{"title": 5}, {"title": "a\0"}, {"title": "x" * 201}, {"title": None}, {"ttl": "soon"},
     {"ttl": -1}, {"ttl": "-1s"}, {"ttl": True}, {"ttl": {"$gt": ""}}, {"metadata": []},
     {"metadata": None}, {"metadata": "x"}, {"metadata": {"x": "y" * 20_000}},
     {"session_id": "other"}, {"messages": 0}, {"unknown": 1}],
)  # fmt: skip
def test_changes_that_are_none_are_400(
    client: httpx.Client, session: str, changes: dict[str, Any]
) -> None:
    say(client, session, "hello")
    before = get(client, session)
    assert_problem(change(client, session, **changes), 400, "invalid_request")
    after = get(client, session)
    same = ("title", "metadata", "expires_at")
    assert [after[name] for name in same] == [before[name] for name in same]


def test_a_deleted_session_is_gone_from_everywhere(client: httpx.Client, session: str) -> None:
    turn = say(client, session, f"my {CANARY} tree is called Ferdinand")
    record(client, f"{session}-other", "this one stays")
    indexed(client, session)
    indexed(client, f"{session}-other")
    assert memories(client, q="Ferdinand")["memories"]
    response = client.delete(f"/v1/sessions/{session}")
    assert response.status_code == 200
    unknown = client.get(f"/v1/sessions/{session}-unknown")
    for path in (f"/v1/sessions/{session}", f"/v1/sessions/{session}/messages",
                 f"/v1/turns/{turn['turn_id']}"):  # fmt: skip
        assert same_problem(client.get(path), unknown), path
    assert same_problem(change(client, session, title="x"), unknown)
    assert same_problem(client.delete(f"/v1/sessions/{session}"), unknown)
    listed = client.get("/v1/sessions").json()["sessions"]
    assert [s["session_id"] for s in listed] == [f"{session}-other"]
    for query in ({}, {"q": "Ferdinand"}, {"q": "tree", "session_id": session}):
        assert "Ferdinand" not in str(memories(client, **query))
    for name in (session, f"{session}-other"):
        assert "Ferdinand" not in str(context(client, name, "what is my tree called?"))
    assert len(history(client, f"{session}-other")["messages"]) == 1
    again = say(client, session, "hello again")
    assert again["user"]["seq"] == 1
    assert "Ferdinand" not in str(again)


def test_a_session_that_is_deleted_while_it_answers_ends_the_stream(
    client: httpx.Client, service: Any, model: Any, session: str, user: str
) -> None:
    """docs/contract.md: error code `erased`."""
    from threading import Thread

    from system.streams import parse_all

    model.mode("slow", delay=0.1, text="word " * 15)
    found: list[str] = []

    def ask() -> None:
        with service.sync_client(user) as own:
            url = f"/v1/sessions/{session}/turns"
            found.append(own.post(url, json={"message": f"tell me of {CANARY}s"}).text)

    asking = Thread(target=ask)
    asking.start()
    wait_for(lambda: model.requests())
    assert client.delete(f"/v1/sessions/{session}").status_code == 200
    asking.join(PATIENCE_SECONDS)
    events = parse_all(found[0])
    assert events[-1].name == "error"
    assert events[-1].data["code"] == "erased"
    assert events[-1].data["retryable"] is False
    assert client.get(f"/v1/sessions/{session}").status_code == 404
    assert memories(client)["memories"] == []
