from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import eventually

from memory import Incoming, Strata, TurnRequest, open_memory
from memory.embeddings import sparse_query
from memory.errors import NotFound
from memory.locks import SessionLocks
from memory.models import NEVER, Summary, Turn, now, session_key
from memory.retention.erasing import Eraser
from memory.retention.sweeper import Sweeper
from memory.stores.base import PAGE, Store
from unit.builders import (
    SESSION,
    USER,
    StoreAround,
    config,
    embedded_bytes,
    expired,
    opened,
    say,
    turn,
)

KEY = session_key(USER.key, SESSION)
SMALL = {"context_tokens": 900, "window_tokens": 300, "summary_tokens": 120, "recall_tokens": 100,
         "facts_tokens": 0}  # fmt: skip


async def shown(strata: Strata, session: str = SESSION) -> str:
    """Everything that any read path shows of this user."""
    library = strata.history
    seen: list[Any] = []
    for name in (session, "a new session"):
        try:
            seen.append(await library.session(USER, name))
            seen.append(await library.messages(USER, name, before=None, limit=99))
        except NotFound:
            pass
        ask = TurnRequest(user=USER, session_id=name, question="What does the canary sing?")
        seen.append(await strata.memory.preview(ask))
    seen.append(await library.sessions(USER, before=None, limit=99))
    seen.append(await library.memories(USER, query=None, limit=99))
    seen.append(await library.memories(USER, query="canary", limit=99))
    return repr(seen).replace("What does the canary sing?", "")


async def swept(strata: Strata) -> None:
    """Sweep until nothing is left to sweep."""

    async def nothing_left() -> bool:
        await strata.sweeper.sweep()
        assert strata.index is not None
        gone = not await strata.store.sessions.with_expired_turns(
            before=now() - timedelta(seconds=1)
        )
        return gone and await strata.index.count() == await living_points(strata)

    await eventually(nothing_left)


async def living_points(strata: Strata) -> int:
    turns = await strata.store.turns.of_user(USER.key, now=now(), limit=9999)
    return sum(bool(m.content) for t in turns for m in t.messages)


async def checkpointed(folder: Path) -> bytes:
    return embedded_bytes(folder).lower()


# --- ttl.memory (R15) --------------------------------------------------------------------------


async def test_what_expires_is_invisible_at_once_and_gone_after_the_sweep(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"memory": "2s"}, budget=SMALL) as strata:
        for n in range(6):
            last = await say(strata, f"The Canary {n} sings of Xylophons. " * 9, "A canary! " * 9,
                             recall="none")  # fmt: skip
        recorded = await strata.memory.record(
            USER, "canary-session", [Incoming(role="user", content="hm", speaker="Canarius")]
        )
        await strata.caught_up()
        assert recorded.accepted == 1
        assert "Canary" in await shown(strata)
        await expired(last.expires_at + timedelta(milliseconds=50))
        before_any_sweep = await shown(strata)
        assert "anary" not in before_any_sweep
        with pytest.raises(NotFound):
            await strata.history.turn(USER, last.id)
        with pytest.raises(NotFound):
            await strata.history.session(USER, SESSION)
        assert (await strata.history.sessions(USER, before=None, limit=9))[0] == []

        await swept(strata)
        assert strata.index is not None
        assert await strata.index.count() == 0
        assert await strata.store.turns.range(KEY, after=0, limit=9) == []
        assert await strata.store.sessions.get(KEY) is None
        assert await strata.store.segments.of(KEY, now=now() - timedelta(days=1)) == []
        assert b"canar" not in await checkpointed(tmp_path)
    assert b"canar" not in await checkpointed(tmp_path)


def timed(seq: int, text: str, expires: datetime) -> Turn:
    return turn(text, "I see.", seq=seq, at=now(), expires=expires)


async def test_what_lives_on_keeps_its_history_and_loses_every_trace_of_what_went(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as strata:
        soon = now() + timedelta(seconds=2)
        await strata.store.turns.append(
            [
                timed(1, "The Canary sings of Xylophons.", soon),
                timed(3, "My dog is called Bruno.", NEVER),
                timed(5, "We live in Zürich.", NEVER),
            ]
        )
        await strata.caught_up()
        session = await strata.history.session(USER, SESSION)
        assert session.title == "The Canary sings of Xylophons."
        await expired(soon)
        assert "Canary" not in await shown(strata)
        session = await strata.history.session(USER, SESSION)
        assert session.title == "My dog is called Bruno."

        await swept(strata)
        assert strata.index is not None
        assert b"canary" not in await checkpointed(tmp_path)
        session = await strata.history.session(USER, SESSION)
        assert (session.first_seq, session.title) == (3, "My dog is called Bruno.")
        messages, _ = await strata.history.messages(USER, SESSION, before=None, limit=9)
        assert [m.seq for m in messages] == [3, 4, 5, 6]
        hits = await strata.index.search(
            user=USER.key, sparse=sparse_query("canary xylophons"), dense=None, limit=9, now=now()
        )
        assert hits.lexical == [], "its words have left the neighbours' vectors"
        context = await strata.memory.preview(
            TurnRequest(user=USER, session_id=SESSION, question="?")
        )
        assert context.receipt.layers.window.messages == 4
        assert context.receipt.dropped == (), "what expired was not dropped from the window"


async def test_a_title_that_the_user_gave_survives_its_first_message(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        soon = now() + timedelta(seconds=1)
        await strata.store.turns.append([timed(1, "The Canary.", soon), timed(3, "Bruno.", NEVER)])
        await strata.caught_up()
        await strata.history.change(USER, SESSION, {"title": "Pets"})
        await expired(soon)
        assert (await strata.history.session(USER, SESSION)).title == "Pets"
        await swept(strata)
        assert (await strata.history.session(USER, SESSION)).title == "Pets"


async def test_an_expired_part_leaves_the_rolled_summary(tmp_path: Path) -> None:
    async with opened(tmp_path, budget=SMALL) as strata:
        soon = now() + timedelta(seconds=2)
        filler = "We talked about this and that. " * 8
        turns = [timed(1, f"I met the Canary. {filler}", soon)]
        turns += [
            timed(1 + 2 * n, f"I met {name}. {filler}", NEVER)
            for n, name in enumerate("Maria Bruno Oskar Tadeusz".split(), start=1)
        ]
        await strata.store.turns.append(turns[:3])
        await strata.caught_up()
        await strata.store.turns.append(turns[3:])
        await strata.caught_up()
        text = (await strata.history.session(USER, SESSION)).summary.text
        assert "Canary" in text
        await expired(soon)
        assert "Canary" not in await shown(strata)
        await swept(strata)
        summary = (await strata.history.session(USER, SESSION)).summary
        assert "Canary" not in summary.text
        assert summary.covers_through > 2
        assert b"canary" not in await checkpointed(tmp_path)


async def test_a_sweep_that_finds_nothing_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        before = await strata.store.sessions.get(KEY)
        assert await strata.sweeper.sweep() == 0
        assert await strata.store.sessions.get(KEY) == before


async def test_more_sessions_than_a_page_are_swept_whole(tmp_path: Path) -> None:
    async with opened(tmp_path, index={"url": "none"}) as strata:
        gone = now() + timedelta(milliseconds=1)
        names = [f"s{n}" for n in range(PAGE + 20)]
        for name in names:
            await strata.store.turns.append(
                [turn("The Canary sings.", "Yes.", session=name, at=now(), expires=gone)]
            )
        await strata.caught_up()
        for _ in range(2):
            for name in names:
                await strata.sessions.session(session_key(USER.key, name))

        async def all_gone() -> bool:
            await strata.sweeper.sweep()
            return not await strata.store.sessions.page(USER.key, before=None, limit=999)

        await eventually(all_gone)
    assert b"canary" not in await checkpointed(tmp_path)


# --- a sweep among others' work ----------------------------------------------------------------


class JustBefore(StoreAround):
    """A store in which somebody says something just before the sweeper forgets a session."""

    def __init__(self, inner: Store, late: Turn) -> None:
        super().__init__(inner)
        self._late = late

    async def call(self, name: str, method: Any, *given: Any, **named: Any) -> Any:
        if name == "sessions.delete_if_empty":
            await self.inner.turns.append([self._late])
        return await method(*given, **named)


async def test_a_turn_accepted_while_its_session_is_swept_is_not_lost(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        gone = now() + timedelta(milliseconds=1)
        await strata.store.turns.append([timed(1, "The Canary.", gone)])
        await strata.caught_up()
        late = timed(3, "My dog is called Bruno.", NEVER)
        store: Any = JustBefore(strata.store, late)
        locks = SessionLocks()
        shared: dict[str, Any] = {"store": store, "index": strata.index, "locks": locks,
                                  "projector": strata.projector}  # fmt: skip
        sweeper = Sweeper(
            eraser=Eraser(**shared), summaries=strata.summaries, config=strata.config, **shared
        )
        await expired(gone + timedelta(seconds=1.1))
        assert await sweeper.sweep() == 1
        assert await strata.store.turns.get(late.id, now=now()) is not None
        assert [t.seq for t in await strata.store.turns.range(KEY, after=0, limit=9)] == [3]


async def test_the_background_sweeps_by_itself(tmp_path: Path) -> None:
    settings = config(tmp_path, ttl={"memory": "300ms"}, projector={"sweep_interval": "100ms"})
    async with open_memory(settings, background=True) as strata:
        await say(strata, "The Canary sings of Xylophons.")

        async def gone() -> bool:
            return not await strata.store.turns.range(KEY, after=0, limit=9)

        await eventually(gone)
        await eventually(lambda: b"canary" not in embedded_bytes(tmp_path).lower())


# --- ttl.session -------------------------------------------------------------------------------


async def test_an_ended_session_is_gone_and_its_turns_stay_recallable(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"session": "2s"}, budget=SMALL) as strata:
        for n in range(6):
            last = await say(strata, f"My dog number {n} is called Bruno. " * 9, "Nice. " * 9,
                             recall="none")  # fmt: skip
        await strata.caught_up()
        session = await strata.history.session(USER, SESSION)
        assert session.summary.text
        assert session.expires_at == last.recorded_at + timedelta(seconds=2)
        await expired(session.expires_at)
        for sweeps in range(3):
            with pytest.raises(NotFound):
                await strata.history.session(USER, SESSION)
            with pytest.raises(NotFound):
                await strata.history.messages(USER, SESSION, before=None, limit=9)
            assert (await strata.history.sessions(USER, before=None, limit=9))[0] == []
            found = await strata.history.memories(USER, query="dog Bruno", limit=99)
            assert len(found.items) == 12
            ask = TurnRequest(user=USER, session_id=SESSION, question="What is my dog called?")
            context = await strata.memory.preview(ask)
            assert context.receipt.layers.window.messages == 0
            assert "<summary>\n" not in context.messages[0].content
            assert "Bruno" in context.recall_block
            if sweeps:
                stored = await strata.store.sessions.get(KEY)
                assert stored is not None
                assert (stored.title, stored.summary.text, stored.expires_at) == ("", "", NEVER)
                assert stored.summary.version == session.summary.version + 1
                assert await strata.store.segments.of(KEY, now=now()) == []
                assert await strata.store.sessions.ended(before=now()) == []
            assert await strata.sweeper.sweep() == 0
        again = await say(strata, "Do you remember?", "I do.")
        assert again.seq == 13
        messages, _ = await strata.history.messages(USER, SESSION, before=None, limit=9)
        assert [m.seq for m in messages] == [13, 14]
        session = await strata.history.session(USER, SESSION)
        assert (session.title, session.first_seq) == ("Do you remember?", 13)


async def test_a_session_that_is_used_again_before_the_sweep_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"session": "1s"}) as strata:
        first = await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        await expired(first.recorded_at + timedelta(seconds=1))
        again = await say(strata, "Do you remember?", "I do.")
        await strata.sweeper.sweep()
        messages, _ = await strata.history.messages(USER, SESSION, before=None, limit=9)
        assert [m.seq for m in messages] == [again.seq, again.last_seq] == [3, 4]


async def test_activity_before_the_end_keeps_a_session_alive(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"session": "2s"}) as strata:
        first = await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        await expired(first.recorded_at + timedelta(seconds=1))
        await say(strata, "And my cat Oskar.")
        await expired(first.recorded_at + timedelta(seconds=2.01))
        await strata.sweeper.sweep()
        session = await strata.history.session(USER, SESSION)
        assert (session.first_seq, session.last_seq) == (1, 4)


# --- ttl.memory = "session" --------------------------------------------------------------------


async def test_memory_that_lives_with_its_session_ends_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path, ttl={"memory": "session", "session": "2s"}) as strata:
        other = await say(strata, "We live in Zürich.", session="living")
        await strata.history.change(USER, "living", {"ttl_seconds": 3600.0})
        mine = await say(strata, "The Canary sings of Xylophons.")
        await strata.caught_up()
        assert mine.expires_at == NEVER
        assert "Canary" in await shown(strata)
        await expired(mine.recorded_at + timedelta(seconds=2.01))
        assert "Canary" not in await shown(strata)
        with pytest.raises(NotFound):
            await strata.history.turn(USER, mine.id)
        assert (await strata.history.turn(USER, other.id)).id == other.id
        assert await strata.sweeper.sweep() == 1
        assert strata.index is not None
        assert await strata.index.count() == 2
        assert await strata.store.turns.range(KEY, after=0, limit=9) == []
        assert b"canary" not in await checkpointed(tmp_path)
        found = await strata.history.memories(USER, query="Zürich", limit=9)
        assert [i.message.content for i in found.items] == ["We live in Zürich.", "Noted."]


async def test_an_erase_that_a_crash_cut_short_is_finished(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "The Canary sings of Xylophons.")
        await strata.caught_up()
        await strata.store.sessions.change(KEY, {"erasing": True, "first_seq": 3, "last_seq": 2})
        with pytest.raises(NotFound):
            await strata.history.session(USER, SESSION)
        await strata.sweeper.sweep()
        assert strata.index is not None
        assert await strata.index.count() == 0
        assert await strata.store.sessions.get(KEY) is None
        assert b"canary" not in await checkpointed(tmp_path)


async def test_a_summary_of_the_past_is_never_shown_after_its_time(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "My dog is called Bruno.")
        await strata.caught_up()
        past = Summary(text="The Canary.", version=1, expires_at=now())
        await strata.store.sessions.change(KEY, {"summary": past})
        ask = TurnRequest(user=USER, session_id=SESSION, question="?")
        assert "Canary" not in str(await strata.memory.preview(ask))
        shown_session = msgspec.to_builtins(await strata.history.session(USER, SESSION))
        assert "Canary" not in str(shown_session)
