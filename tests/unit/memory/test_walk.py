"""A random walk through the whole library beside a small model of what must be there."""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from memory import Incoming, Strata, TurnRequest, User
from memory.errors import NotFound, TurnLost
from memory.models import TurnError, session_key
from memory.open_turn import OpenTurn
from memory.text import cut
from unit.builders import count_messages, counter, opened
from unit.texts import odd_text

SMALL = {"context_tokens": 900, "window_tokens": 300, "summary_tokens": 120, "recall_tokens": 100,
         "facts_tokens": 0}  # fmt: skip
USERS = (User("acme", "anna"), User("acme", "oskar"), User("globex", "anna"))
SESSIONS = ("one", "two")
STEPS = 120

Place = tuple[User, str]


class Walk:
    """`said` holds what every session must tell, in order."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.said: dict[Place, list[tuple[str, str]]] = defaultdict(list)
        self.running: dict[Place, OpenTurn] = {}
        self.stack = AsyncExitStack()
        self.strata: Strata

    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.strata = await self.stack.enter_async_context(opened(self.folder, budget=SMALL))

    async def step(self) -> str:
        steps = [self.turn] * 6 + [self.record] * 2 + [
            self.fail, self.begin, self.begin, self.end, self.end, self.settle, self.settle,
            self.erase, self.sweep, self.reopen,
        ]  # fmt: skip
        chosen = self.rng.choice(steps)
        await chosen(self.rng.choice(USERS), self.rng.choice(SESSIONS))
        return chosen.__name__

    def text(self, user: User) -> str:
        return f"{odd_text(self.rng)} secret-{user.tenant}-{user.name}"

    async def begin(self, user: User, session: str) -> None:
        if (user, session) in self.running:
            return
        question = self.text(user)
        ask = TurnRequest(user=user, session_id=session, question=question)
        self.running[user, session] = await self.strata.memory.begin(ask)
        self.said[user, session] += [(question, "done"), ("", "running")]

    async def end(self, user: User, session: str) -> None:
        accepted = self.running.pop((user, session), None)
        if accepted is None:
            return
        context = await accepted.context()
        budget = self.strata.config.current.budget.context_tokens
        used = count_messages(counter(), context.messages)
        assert used == context.receipt.used_tokens <= budget
        for other in USERS:
            if other != user:
                whole = str(context.messages)
                assert f"secret-{other.tenant}-{other.name}" not in whole
        answer = self.text(user)
        await accepted.finish(answer, status="done")
        self.said[user, session][-1] = (answer, "done")

    async def turn(self, user: User, session: str) -> None:
        await self.begin(user, session)
        await self.end(user, session)

    async def fail(self, user: User, session: str) -> None:
        accepted = self.running.pop((user, session), None)
        if accepted is None:
            return
        text = self.rng.choice(("", self.text(user)))
        error = TurnError("model_error", "no", True)
        await accepted.finish(text, status="failed", error=error)
        self.said[user, session][-1] = (text, "partial" if text else "failed")

    async def record(self, user: User, session: str) -> None:
        if (user, session) in self.running:
            return
        texts = [self.text(user) for _ in range(self.rng.randint(1, 4))]
        messages = [
            Incoming(role=self.rng.choice(("user", "assistant")), content=text) for text in texts
        ]
        await self.strata.memory.record(user, session, messages)
        self.said[user, session] += [(text, "done") for text in texts]

    async def settle(self, user: User, session: str) -> None:
        await self.strata.caught_up()

    async def sweep(self, user: User, session: str) -> None:
        assert await self.strata.sweeper.sweep() == 0

    async def erase(self, user: User, session: str) -> None:
        if (user, session) not in self.said:
            with pytest.raises(NotFound):
                await self.strata.history.delete_session(user, session)
            return
        await self.strata.history.delete_session(user, session)
        del self.said[user, session]
        accepted = self.running.pop((user, session), None)
        if accepted is not None:
            with pytest.raises(TurnLost):
                await accepted.finish("late", status="done")

    async def reopen(self, user: User, session: str) -> None:
        await self.stack.aclose()
        await self.open()
        for place in self.running:
            self.said[place][-1] = (self.said[place][-1][0], "interrupted")
        self.running.clear()

    async def check(self) -> None:
        library = self.strata.history
        for user in USERS:
            listed, _ = await library.sessions(user, before=None, limit=99)
            mine = {session for owner, session in self.said if owner == user}
            assert {s.session_id for s in listed} == mine
            for session in SESSIONS:
                if session not in mine:
                    with pytest.raises(NotFound):
                        await library.messages(user, session, before=None, limit=9)
                    continue
                page, _ = await library.messages(user, session, before=None, limit=9999)
                assert [(m.content, m.status) for m in page] == self.said[user, session]
                assert [m.seq for m in page] == list(range(1, len(page) + 1))
            found = await library.memories(user, query=None, limit=9999)
            told = [t for place, texts in self.said.items() if place[0] == user for t, _ in texts]
            assert sorted(i.message.content for i in found.items) == sorted(filter(None, told))

    async def check_quiet(self) -> None:
        """Once all is settled the index holds the messages, no more and no less."""
        await self.strata.caught_up()
        index = self.strata.index
        assert index is not None
        for user in USERS:
            points = sum(
                len(cut(text))
                for place, texts in self.said.items()
                if place[0] == user
                for text, _ in texts[: -2 if place in self.running else None]
                if text
            )
            assert await index.count(user.key) == points
        running = {session_key(user.key, session) for user, session in self.running}
        assert set(await self.strata.store.work.pending()) == running


async def test_a_random_walk_loses_nothing_and_shows_nobody_elses(
    tmp_path: Path, rng: random.Random
) -> None:
    walk = Walk(tmp_path, rng)
    await walk.open()
    taken: list[str] = []
    try:
        for _ in range(STEPS):
            taken.append(await walk.step())
            await walk.check()
            if taken[-1] == "settle":
                await walk.check_quiet()
        await walk.check_quiet()
    except AssertionError:
        print(" ".join(taken))
        raise
    finally:
        await walk.stack.aclose()
