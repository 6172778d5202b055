"""S1, S2: no read or write path crosses users, and another's things look like nothing."""

from __future__ import annotations

import httpx

from api.shapes import context, history, indexed, memories, record, same_problem, say

SECRET = "The vault code is ninety-nine kumquats"


def test_anothers_session_and_turns_look_unknown(
    client: httpx.Client, other: httpx.Client, session: str
) -> None:
    turn, nobodys = say(client, session, SECRET), f"{'0' * 65}:0000000001"
    pairs = (
        ("GET", f"/v1/turns/{turn['turn_id']}", f"/v1/turns/{nobodys}"),
        ("GET", f"/v1/turns/{turn['turn_id']}/events", f"/v1/turns/{nobodys}/events"),
        ("POST", f"/v1/turns/{turn['turn_id']}/cancel", f"/v1/turns/{nobodys}/cancel"),
        ("GET", f"/v1/sessions/{session}", "/v1/sessions/unknown"),
        ("GET", f"/v1/sessions/{session}/messages", "/v1/sessions/unknown/messages"),
        ("DELETE", f"/v1/sessions/{session}", "/v1/sessions/unknown"),
        ("PATCH", f"/v1/sessions/{session}", "/v1/sessions/unknown"),
    )
    for method, theirs, unknown in pairs:
        body = {"title": "mine now"} if method == "PATCH" else None
        found = other.request(method, theirs, json=body)
        assert found.status_code == 404
        assert same_problem(found, other.request(method, unknown, json=body)), (method, theirs)
    assert client.get(f"/v1/sessions/{session}").json()["title"] == SECRET
    assert len(history(client, session)["messages"]) == 2


def test_the_same_session_id_of_two_users_is_two_sessions(
    client: httpx.Client, other: httpx.Client, session: str
) -> None:
    say(client, session, SECRET)
    turn = say(other, session, "What is the vault code?")
    assert turn["user"]["seq"] == 1
    assert turn["receipt"]["layers"]["window"]["messages"] == 0
    record(other, session, {"role": "user", "content": "mine", "id": "same"})
    assert record(client, session, {"role": "user", "content": "x", "id": "same"})["accepted"] == 1
    assert "ninety" not in str(history(other, session))
    assert other.delete(f"/v1/sessions/{session}").status_code == 200
    assert len(history(client, session)["messages"]) == 3


def test_no_read_path_shows_what_another_said(
    client: httpx.Client, other: httpx.Client, session: str
) -> None:
    """S2: a canary over every route, recall included."""
    record(client, session, SECRET, *[f"{SECRET}, part {n}" for n in range(5)])
    indexed(client, session)
    record(other, f"{session}-other", "I have nothing to hide")
    indexed(other, f"{session}-other")
    found = [
        other.get("/v1/sessions").text,
        str(memories(other)),
        str(memories(other, q="What is the vault code?")),
        str(memories(other, q=SECRET, session_id=session)),
        str(memories(other, session_id=session)),
        str(context(other, session, "What is the vault code?")),
        str(context(other, f"{session}-other", SECRET.replace("kumquats", ""), recall="user")),
        str(say(other, f"{session}-new", "What is the vault code?")),
        str(say(other, session, "What is the vault code?", memory="read")),
    ]
    for text in found:
        assert "kumquats" not in text
    assert "kumquats" in str(memories(client, q="What is the vault code?"))


def test_a_user_comes_from_the_credential_only(
    client: httpx.Client, other: httpx.Client, session: str, user: str
) -> None:
    """S1: never from a body, a path or a query."""
    record(client, session, SECRET)
    for query in (f"user={user}", f"user_id={user}", f"x-user-id={user}"):
        assert SECRET not in other.get(f"/v1/memories?{query}").text
        assert other.get(f"/v1/sessions/{session}?{query}").status_code == 404
    body = {"query": "vault code?", "user": user}
    assert other.post(f"/v1/sessions/{session}/context", json=body).status_code == 400


def test_without_the_header_there_is_one_local_user(client: httpx.Client, session: str) -> None:
    say(client, session, SECRET)
    del client.headers["X-User-Id"]
    assert client.get(f"/v1/sessions/{session}").status_code == 404
    record(client, session, "local")
    client.headers["X-User-Id"] = "local"
    assert [m["content"] for m in history(client, session)["messages"]] == ["local"]
    client.headers["X-User-Id"] = "LOCAL"
    assert client.get(f"/v1/sessions/{session}").status_code == 404
