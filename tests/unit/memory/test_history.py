from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from waiting import eventually

from memory import Incoming, Strata, TurnRequest, User
from memory.errors import IndexUnavailable, NotFound
from memory.history import History
from memory.indexes.base import Hits
from memory.locks import SessionLocks
from memory.models import Recollection, Session, now, session_key
from memory.recall.search import Recall
from memory.retention.erasing import Eraser
from unit.builders import NOON, SESSION, USER, IndexAround, dialogue, expired, opened, say, turn

OTHER = User("acme", "oskar")
FOREIGN = User("globex", USER.name)


def texts(items: list[Recollection]) -> list[str]:
    return [item.message.content for item in items]


# --- turns and history -----------------------------------------------------------------------


async def test_a_turn_is_read_by_its_owner_alone(strata: Strata) -> None:
    mine = await say(strata, "My dog is called Bruno.")
    assert await strata.history.turn(USER, mine.id) == mine
    for user in (OTHER, FOREIGN):
        with pytest.raises(NotFound):
            await strata.history.turn(user, mine.id)
    for unknown in (f"{mine.session_key}:0000000099", "", "x", f"{USER.key}.", mine.id + "\n"):
        with pytest.raises(NotFound):
            await strata.history.turn(USER, unknown)


async def test_a_recorded_message_is_no_turn(strata: Strata) -> None:
    recorded = await strata.memory.record(USER, SESSION, [Incoming(role="user", content="x")])
    with pytest.raises(NotFound):
        await strata.history.turn(USER, recorded.message_ids[0].rpartition(".")[0])


async def test_history_is_paged_backwards_over_turns_and_recorded_messages(strata: Strata) -> None:
    for n in range(3):
        await say(strata, f"question {n}", f"answer {n}")
        await strata.memory.record(USER, SESSION, [Incoming(role="user", content=f"told {n}")])
    for limit in (1, 2, 3, 4, 8, 9, 10, 99):
        found: list[int] = []
        before: int | None = None
        pages = 0
        while True:
            page, before = await strata.history.messages(USER, SESSION, before=before, limit=limit)
            assert len(page) <= limit
            assert [m.seq for m in page] == sorted(m.seq for m in page)
            found = [m.seq for m in page] + found
            pages += 1
            if before is None:
                break
        assert found == list(range(1, 10)), limit
        assert pages == -(-9 // limit)


async def test_history_shows_an_empty_answer_that_is_still_running(strata: Strata) -> None:
    accepted = await strata.memory.begin(
        TurnRequest(user=USER, session_id=SESSION, question="hello")
    )
    page, _ = await strata.history.messages(USER, SESSION, before=None, limit=9)
    assert [(m.role, m.content, m.status) for m in page] == [
        ("user", "hello", "done"), ("assistant", "", "running"),
    ]  # fmt: skip
    accepted.abandon()


# --- sessions --------------------------------------------------------------------------------


async def test_an_unknown_session_and_somebody_elses_look_alike(strata: Strata) -> None:
    await say(strata, "My dog is called Bruno.")
    for user, name in ((USER, "unknown"), (OTHER, SESSION), (FOREIGN, SESSION)):
        with pytest.raises(NotFound) as caught:
            await strata.history.session(user, name)
        assert str(caught.value) == "session"
        with pytest.raises(NotFound):
            await strata.history.messages(user, name, before=None, limit=9)
        with pytest.raises(NotFound):
            await strata.history.change(user, name, {"title": "mine"})
        with pytest.raises(NotFound):
            await strata.history.delete_session(user, name)


async def all_sessions(strata: Strata, limit: int, user: User = USER) -> list[Session]:
    found: list[Session] = []
    before = None
    while True:
        page, before = await strata.history.sessions(user, before=before, limit=limit)
        assert len(page) <= limit
        found += page
        if before is None:
            return found


async def test_sessions_are_listed_by_last_activity_projected_or_not(strata: Strata) -> None:
    for name in ("a", "b", "c"):
        await say(strata, f"This is {name}.", session=name)
    await say(strata, "again", session="a")
    await say(strata, "theirs", session="d", user=OTHER)
    for limit in (1, 2, 3, 9):
        found = await all_sessions(strata, limit)
        assert [s.session_id for s in found] == ["a", "c", "b"]
    assert [s.title for s in found] == ["This is a.", "This is c.", "This is b."]
    assert [s.last_seq for s in found] == [4, 2, 2]
    assert await all_sessions(strata, 9, FOREIGN) == []


async def test_ended_sessions_do_not_cut_the_list_short(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        for n in range(9):
            await say(strata, f"This is {n}.", session=f"s{n}")
        for n in (2, 3, 4, 7):
            ending = {"ttl_seconds": 0.001, "expires_at": now()}
            await strata.history.session(USER, f"s{n}")
            await strata.store.sessions.change(session_key(USER.key, f"s{n}"), ending)
        await expired(now())
        expected = [f"s{n}" for n in (8, 6, 5, 1, 0)]
        for swept in (False, True):
            if swept:
                await strata.sweeper.sweep()
            for limit in (1, 2, 3, 9):
                found = await all_sessions(strata, limit)
                assert [s.session_id for s in found] == expected, (swept, limit)


async def test_title_metadata_and_ttl_can_be_changed_and_stay(strata: Strata) -> None:
    first = await say(strata, "My dog is called Bruno.")
    changed = await strata.history.change(
        USER, SESSION, {"title": "Dogs", "metadata": {"a": 1}, "ttl_seconds": 3600.0}
    )
    assert (changed.title, changed.metadata, changed.ttl_seconds) == ("Dogs", {"a": 1}, 3600.0)
    assert changed.expires_at == first.recorded_at + timedelta(hours=1)
    last = await say(strata, "And my cat Oskar.")
    later = await strata.history.session(USER, SESSION)
    assert (later.title, later.metadata) == ("Dogs", {"a": 1})
    assert later.expires_at == last.recorded_at + timedelta(hours=1)


# --- memories --------------------------------------------------------------------------------


async def test_memories_without_a_query_are_the_newest(strata: Strata) -> None:
    for n in range(3):
        await say(strata, f"question {n}", f"answer {n}", session=f"s{n}")
    await say(strata, "theirs", user=OTHER)
    found = await strata.history.memories(USER, query=None, limit=99)
    assert texts(found.items) == [
        "answer 2", "question 2", "answer 1", "question 1", "answer 0", "question 0",
    ]  # fmt: skip
    assert found.degraded == ()
    assert (found.items[0].dense_rank, found.items[0].lexical_rank) == (None, None)
    assert texts((await strata.history.memories(USER, query=None, limit=3)).items) == [
        "answer 2", "question 2", "answer 1",
    ]  # fmt: skip


async def test_memories_are_filtered(strata: Strata) -> None:
    old = dialogue([("tea?", "green tea"), ("coffee?", "black tea")], at=NOON, session="one")
    new = dialogue([("more tea?", "white tea")], at=NOON + timedelta(days=1), session="two")
    await strata.store.turns.append(old)
    await strata.store.turns.append(new)
    await strata.caught_up()
    library = strata.history
    for query in (None, "tea"):
        found = await library.memories(USER, query=query, limit=9, role="assistant")
        assert set(texts(found.items)) == {"green tea", "black tea", "white tea"}
        found = await library.memories(USER, query=query, limit=9, session_id="two")
        assert set(texts(found.items)) == {"more tea?", "white tea"}
        found = await library.memories(USER, query=query, limit=9, since=NOON + timedelta(hours=1))
        assert set(texts(found.items)) == {"more tea?", "white tea"}
        until = NOON + timedelta(minutes=1)
        found = await library.memories(USER, query=query, limit=9, until=until)
        assert set(texts(found.items)) == {"tea?", "green tea"}
        found = await library.memories(
            USER, query=query, limit=9, since=NOON, until=until, role="user", session_id="one"
        )
        assert texts(found.items) == ["tea?"]


async def test_a_filter_that_little_passes_is_searched_to_its_end(strata: Strata) -> None:
    await strata.store.turns.append(dialogue([(f"question {n}", f"answer {n}") for n in range(40)]))
    await strata.store.turns.append(
        [turn("the very first", at=NOON - timedelta(days=1), session="old")]
    )
    found = await strata.history.memories(USER, query=None, limit=21, role="user")
    assert texts(found.items) == [f"question {n}" for n in range(39, 18, -1)]
    found = await strata.history.memories(USER, query=None, limit=99, role="user")
    assert len(found.items) == 41
    assert texts(found.items)[-1] == "the very first"


async def test_a_search_gives_each_message_once_best_first(strata: Strata) -> None:
    long = "Bruno runs along the river with me in the morning. " * 30
    await say(strata, "My dog is called Bruno.", "A fine name.")
    await say(strata, long, "Such energy!")
    await say(strata, "I like green tea.", "Me too.", session="tea")
    await strata.caught_up()
    found = await strata.history.memories(USER, query="What is my dog Bruno called?", limit=9)
    ids = [item.message.id for item in found.items]
    assert len(ids) == len(set(ids))
    assert found.items[0].message.content == "My dog is called Bruno."
    assert [i.score for i in found.items] == sorted((i.score for i in found.items), reverse=True)
    assert found.degraded == ("embedding",)
    assert len((await strata.history.memories(USER, query="Bruno", limit=1)).items) == 1


async def test_a_search_finds_nothing_of_others(strata: Strata) -> None:
    await say(strata, "My canary is called Xylophon.", user=OTHER)
    await strata.caught_up()
    for user in (USER, FOREIGN):
        for query in ("canary", None):
            assert (await strata.history.memories(user, query=query, limit=9)).items == []


async def test_a_search_without_an_index_says_so(strata: Strata) -> None:
    class Away(IndexAround):
        async def search(self, **query: object) -> Hits:
            raise IndexUnavailable("away")

    assert strata.index is not None
    index = Away(strata.index)
    library = History(
        store=strata.store,
        recall=Recall(index=index, model=strata.embeddings, config=strata.config),
        sessions=strata.sessions,
        erasing=Eraser(
            store=strata.store, index=index, projector=strata.projector, locks=SessionLocks()
        ),
        config=strata.config,
    )
    assert await library.memories(USER, query="dog", limit=9) == ([], ("recall",))


async def test_what_has_expired_is_listed_nowhere(strata: Strata) -> None:
    soon = now() + timedelta(seconds=1)
    await strata.store.turns.append([turn("The Canary.", "I see.", at=now(), expires=soon)])
    await strata.caught_up()
    assert len((await strata.history.memories(USER, query=None, limit=9)).items) == 2
    await eventually(lambda: now() > soon)
    assert (await strata.history.memories(USER, query=None, limit=9)).items == []
    assert (await strata.history.memories(USER, query="canary", limit=9)).items == []
    assert await all_sessions(strata, 9) == []
    assert await strata.store.sessions.get(session_key(USER.key, SESSION)) is not None
