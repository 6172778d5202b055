"""One state machine over a real service process: whatever happens to it, in whatever order, what
was acknowledged is stored, once and in order, belongs to its user, fits the budget, and is in the
index once it is quiet (R1, R6, R7, R8, R10, R11, R18 with each other).

STRATA_MACHINE_EXAMPLES and STRATA_MACHINE_STEPS make it longer; `--hypothesis-seed` repeats a run.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import StopTest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from servers.proxy import Mode, Proxy
from torture.said import MARKER, canary, echo
from unit.builders import counter
from waiting import wait_for

from system.conftest import BY_WORDS
from system.process import Model, Qdrant, Service, serving
from system.streams import Event, parse, text_of

EXAMPLES = int(os.environ.get("STRATA_MACHINE_EXAMPLES", "3"))
STEPS = int(os.environ.get("STRATA_MACHINE_STEPS", "10"))
# Small, so that the window is left and summaries are written.
BUDGET = {
    "context_tokens": 700, "window_tokens": 300, "summary_tokens": 100, "recall_tokens": 150,
    "facts_tokens": 50,
}  # fmt: skip
TOKEN_SECONDS = 0.02
NAMES = st.sampled_from(["s0", "s1", "s2"])
TOKENS = st.integers(0, 10)
_collections = count(1)
_users = count(1)


@dataclass
class Spoken:
    """What the model of the machine knows of one turn."""

    user: str
    session: str
    number: int
    turn_id: str = ""
    seq: int = 0
    status: str = ""
    answer: str = ""
    attempt: int = 1

    @property
    def text(self) -> str:
        marker = f"{self.user}-{self.session}-t0-{self.number:05d}"
        return f"Please remember what I say: {marker} is one two three four five"

    @property
    def key(self) -> str:
        return f"key-{self.user}-{self.number}"

    @property
    def body(self) -> dict[str, Any]:
        return {"message": self.text}

    def told(self, turn: dict[str, Any]) -> None:
        """The turn as the service tells it."""
        self.turn_id, self.seq = turn["turn_id"], turn["user"]["seq"]
        self.status, self.attempt = turn["status"], turn["attempt"]
        self.answer = turn["assistant"]["content"]
        assert turn["user"]["content"] == self.text


@dataclass
class World:
    """The processes; all examples use them, each as a user of its own."""

    service: Service
    model: Model
    to_index: Proxy


class Conversation(RuleBasedStateMachine):
    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.user = canary(random.Random(next(_users)))
        self.spoken: dict[str, list[Spoken]] = {}
        self.numbers = count()
        self.model_fails = False
        self.index_mode: Mode = "pass"
        self.world.to_index.mode("pass")
        self.world.model.forget()
        if not self.world.service.child.running():  # after an example that failed
            self.world.service.start()
        self.http = self.world.service.sync_client(self.user)
        self.points_before = 0
        self.erased_later = False

    @initialize()
    def begin(self) -> None:
        """What other examples left in the index is not ours."""
        self.points_before = wait_for(lambda: self._ready_when_caught_up(), what="a quiet index")[
            "index"
        ]["points"]

    def teardown(self) -> None:
        error = sys.exc_info()[0]
        failed = error is not None and not issubclass(error, StopTest)  # which only ends it
        if failed:  # a repetition may end otherwise, and hide it
            traceback.print_exc(file=sys.stdout)
        self.world.model.forget()
        self.world.to_index.mode("pass")
        if self.erased_later and not failed:  # the next example counts the points
            self.quiet()
        self.http.close()

    # --- rules -----------------------------------------------------------------------------

    @rule(session=NAMES)
    def turn(self, session: str) -> None:
        self._post(self._new(session))

    @precondition(lambda self: not self.model_fails)
    @rule(sessions=st.lists(NAMES, min_size=2, max_size=4))
    def concurrent_turns(self, sessions: list[str]) -> None:
        made = [self._new(session, keep=False) for session in sessions]
        with ThreadPoolExecutor(len(made)) as threads:
            answers = list(threads.map(self._send, made))
        for one, response in zip(made, answers, strict=True):
            assert response.status_code == 200, response.text
            one.told(response.json())
            assert (one.status, one.answer) == ("done", echo(one.text))
        for one in sorted(made, key=lambda one: one.seq):
            self.spoken.setdefault(one.session, []).append(one)

    @precondition(lambda self: self._all())
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """R7: replayed, run again, or superseded."""
        one = data.draw(st.sampled_from(self._all()), label="turn")
        before = one.status, one.answer, one.turn_id, one.seq, one.attempt
        if one.status in ("done", "partial"):
            response = self._send(one)
            assert response.status_code == 200, response.text
            assert response.headers["idempotency-replayed"] == "true"
            one.told(response.json())
            assert before == (one.status, one.answer, one.turn_id, one.seq, one.attempt)
        elif one is not self.spoken[one.session][-1]:
            response = self._send(one)
            assert response.status_code == 409, response.text
            assert response.json()["code"] == "turn_superseded"
        else:
            self._post(one)
            assert (one.turn_id, one.seq, one.attempt) == (*before[2:4], before[4] + 1)

    @precondition(lambda self: self._all())
    @rule(data=st.data())
    def another_body_with_the_same_key(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self._all()), label="turn")
        response = self._send(one, message=f"{one.text} and more")
        assert response.status_code == 422, response.text

    @precondition(lambda self: not self.model_fails)
    @rule(session=NAMES, tokens=TOKENS)
    def disconnect(self, session: str, tokens: int) -> None:
        """R8: what was streamed is kept."""
        one = self._new(session)
        received = self._streamed(one, tokens)
        turn = wait_for(lambda: self._ended(one))
        one.told(turn)
        assert one.status in ("done", "partial")
        assert one.answer.startswith(text_of(received))

    @precondition(lambda self: not self.model_fails)
    @rule(session=NAMES, tokens=TOKENS)
    def cancel(self, session: str, tokens: int) -> None:
        """R8: the stream ends with what is stored."""
        one = self._new(session)

        def stop() -> None:
            response = self.http.post(f"/v1/turns/{one.turn_id}/cancel")
            assert response.status_code == 202, response.text

        received = self._streamed(one, tokens, then=stop)
        one.told(self._turn(one))
        assert received[-1].name == "done", received[-1]
        if received[-1].data["finish_reason"] == "cancelled":
            assert one.status == "partial"
        else:
            assert one.status == "done"  # it was over before
        assert one.answer == text_of(received)

    @precondition(lambda self: not self.model_fails)
    @rule(session=NAMES, tokens=TOKENS)
    def crash_in_a_turn(self, session: str, tokens: int) -> None:
        """R1, R6: the question stays, and as much of the answer as was flushed."""
        one = self._new(session)
        received = self._streamed(one, tokens, then=self._crash)
        events = [e for b in self._events(one).split("\n\n") if (e := parse(b))]
        one.told(self._turn(one))
        assert one.status in ("interrupted", "done"), one
        assert events[-1].name == ("done" if one.status == "done" else "error")
        assert echo(one.text).startswith(one.answer)
        if received and received[-1].name == "done":
            assert (one.status, one.answer) == ("done", text_of(received))

    @rule()
    def crash(self) -> None:
        self._crash()

    @precondition(lambda self: self.spoken)
    @rule(data=st.data())
    def erase_session(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.spoken)), label="session")
        response = self.http.delete(f"/v1/sessions/{session}")
        if self.index_mode == "pass" or response.status_code == 200:
            assert response.status_code == 200, response.text
        else:  # what the index holds goes later (`quiet`); for every reader it is gone
            assert response.status_code == 503, response.text
            assert response.json()["code"] == "index_unavailable"
            assert "nothing is left to do" in response.json()["detail"]
            self.erased_later = True
        del self.spoken[session]
        assert self.http.get(f"/v1/sessions/{session}").status_code == 404

    @precondition(lambda self: not self.model_fails)
    @rule()
    def expire(self) -> None:
        """A session whose time is over is gone for every reader at once."""
        one = self._new(f"s9{next(self.numbers)}", keep=False)
        response = self._send(one)
        assert response.status_code == 200, response.text
        self.erased_later = True  # its points
        session = f"/v1/sessions/{one.session}"
        response = self.http.patch(session, json={"ttl": "100ms"})
        assert response.status_code in (200, 404), response.text  # 404: it is over already
        wait_for(lambda: self.http.get(session).status_code == 404, what="it expires")
        assert one.text not in {item["content"] for item in self._memories()}

    @rule(mode=st.sampled_from(["500", "reset", "cut", "bad_json", "ok"]))
    def model_fault(self, mode: str) -> None:
        self.model_fails = mode != "ok"
        self._model()
        if self.model_fails:
            self.world.model.mode(mode, chunks=3)

    @rule(mode=st.sampled_from(["refuse", "reset", "blackhole", "pass"]))
    def index_fault(self, mode: Mode) -> None:
        self.index_mode = mode
        self.world.to_index.mode(mode)

    @precondition(lambda self: self.index_mode == "pass")
    @rule()
    def quiet(self) -> None:
        """R11: the index holds what the log holds, no more and no less."""
        stored = [m for name in self.spoken for m in self._history(name) if m["content"]]
        expected = self.points_before + len(stored)

        def caught_up() -> bool:
            ready = self._ready_when_caught_up()
            return bool(ready) and ready["index"]["points"] == expected

        try:
            wait_for(caught_up, what=f"{expected} points")
        except AssertionError as error:
            error.add_note(f"{self.http.get('/health/ready').text}, {self.spoken}")
            raise
        self.erased_later = False
        assert {m["id"] for m in stored} == {item["message_id"] for item in self._memories()}

    # --- after every rule ------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_stored_once_and_in_order(self) -> None:
        for session, spoken in self.spoken.items():
            messages = self._history(session)
            first = messages[0]["seq"]
            assert [m["seq"] for m in messages] == list(range(first, first + len(messages)))
            assert [m["role"] for m in messages] == ["user", "assistant"] * len(spoken)
            assert [m["content"] for m in messages[::2]] == [one.text for one in spoken]
            assert [m["seq"] for m in messages[::2]] == [one.seq for one in spoken]
            assert [m["content"] for m in messages[1::2]] == [one.answer for one in spoken]
            assert not any(m["status"] == "running" for m in messages)

    @invariant()
    def prompts_hold_one_user_and_fit_the_budget(self) -> None:
        """From the log of the model itself, summaries included."""
        tokens = counter()
        response = self.world.model.client.delete("/requests")
        for request in response.json():
            texts = [message["content"] for message in request.get("messages", [])]
            users = {match[1] for text in texts for match in MARKER.finditer(text)}
            assert len(users) <= 1, users
            if request["options"].get("stream"):  # else a summary, maybe of an example before
                assert users == {self.user}
                assert sum(tokens.count(text) for text in texts) <= BUDGET["context_tokens"]

    # --- parts -----------------------------------------------------------------------------

    def _all(self) -> list[Spoken]:
        return [one for session in sorted(self.spoken) for one in self.spoken[session]]

    def _new(self, session: str, *, keep: bool = True) -> Spoken:
        one = Spoken(self.user, session, next(self.numbers))
        if keep:
            self.spoken.setdefault(session, []).append(one)
        return one

    def _send(self, one: Spoken, **changes: Any) -> httpx.Response:
        body = {**one.body, "stream": False, **changes}
        headers = {"Idempotency-Key": one.key}
        return self.http.post(f"/v1/sessions/{one.session}/turns", json=body, headers=headers)

    def _post(self, one: Spoken) -> None:
        """R10: an answer, or one error, after which the question is there."""
        response = self._send(one)
        if self.model_fails:
            assert response.status_code in (502, 504), response.text
            one.turn_id = response.json()["turn_id"]
            one.told(self._turn(one))
            assert one.status == "failed"
            assert echo(one.text).startswith(one.answer)
        else:
            assert response.status_code == 200, response.text
            one.told(response.json())
            assert (one.status, one.answer) == ("done", echo(one.text))

    def _streamed(
        self, one: Spoken, tokens: int, then: Callable[[], None] | None = None
    ) -> list[Event]:
        """The events until so many tokens have come. With `then` the rest is read, if it comes;
        without, the connection is closed."""
        self.world.model.mode("slow", delay=TOKEN_SECONDS)
        received: list[Event] = []
        headers = {"Idempotency-Key": one.key}
        url, body = f"/v1/sessions/{one.session}/turns", {**one.body, "stream": True}
        left = then is None
        try:
            with self.http.stream("POST", url, json=body, headers=headers) as response:
                assert response.status_code == 200, response.read()
                for event in _events_of(response):
                    received.append(event)
                    one.turn_id = one.turn_id or event.data["turn_id"]
                    if sum(e.name == "token" for e in received) >= tokens:
                        if left:
                            break
                        if then is not None:
                            then()
                            then = None
        except httpx.TransportError:
            assert not left
        finally:
            self._model()
        if then is not None and not left:
            then()
        return received

    def _model(self) -> None:
        """Answers normally again; the log stays."""
        self.world.model.mode()

    def _crash(self) -> None:
        self.world.service.kill()
        self.world.to_index.mode("pass")  # a start with an index that is away is refused
        self.world.service.start()
        self.world.to_index.mode(self.index_mode)
        self.http.close()
        self.http = self.world.service.sync_client(self.user)

    def _turn(self, one: Spoken) -> dict[str, Any]:
        response = self.http.get(f"/v1/turns/{one.turn_id}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def _ended(self, one: Spoken) -> dict[str, Any] | None:
        turn = self._turn(one)
        return turn if turn["status"] != "running" else None

    def _events(self, one: Spoken) -> str:
        """R9: to the end; a turn whose lease is over is interrupted by that."""
        response = self.http.get(f"/v1/turns/{one.turn_id}/events")
        assert response.status_code == 200, response.text
        return response.text

    def _history(self, session: str) -> list[dict[str, Any]]:
        url = f"/v1/sessions/{session}/messages"
        response = self.http.get(url, params={"limit": 1000})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["messages"]
        return found

    def _memories(self) -> list[dict[str, Any]]:
        response = self.http.get("/v1/memories", params={"limit": 1000})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["memories"]
        return found

    def _ready_when_caught_up(self) -> dict[str, Any] | None:
        ready: dict[str, Any] = self.http.get("/health/ready").json()
        caught_up = ready["projection"]["behind"] == 0 and "points" in ready["index"]
        return ready if caught_up else None


def _events_of(response: httpx.Response) -> Iterator[Event]:
    rest = b""
    for part in response.iter_bytes():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            if event := parse(block.decode("utf-8")):
                yield event


@contextmanager
def world(folder: Path, model: Model, qdrant: Qdrant, store: dict[str, Any]) -> Iterator[World]:
    with Proxy("127.0.0.1", qdrant.port) as proxy:
        groups: dict[str, dict[str, Any]] = {
            "budget": BUDGET,
            "store": {"timeout": "5s", **store},
            "index": {
                "url": f"http://127.0.0.1:{proxy.port}",
                "collection": f"machine{next(_collections)}-{os.getpid()}",
            },
            "embedding": BY_WORDS,
            "model": {"max_retries": 0, "summary_name": "summary"},
            "projector": {"interval": "50ms", "sweep_interval": "300ms"},
            "ttl": {"memory": "session"},
            "session": {"detach": "100ms", "lease": "500ms", "partial_flush": "50ms"},
        }
        with serving(folder, fake=model, **groups) as service:
            yield World(service, model, proxy)


@pytest.mark.parametrize("shared", [False, True], ids=["sqlite", "mongo"])
def test_whatever_happens_nothing_acknowledged_is_lost_doubled_or_mixed_up(
    request: pytest.FixtureRequest, tmp_path: Path, model: Model, qdrant_process: Qdrant,
    *, shared: bool,
) -> None:  # fmt: skip
    """R1, R6, R7, R8, R10, R11, R18 in random order and together."""
    store = {"url": request.getfixturevalue("mongo_url")} if shared else {}
    began = time.monotonic()
    with world(tmp_path, model, qdrant_process, store) as made:
        machine = type("Machine", (Conversation,), {"world": made})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                # What the processes do is not repeatable enough to be shrunk.
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{EXAMPLES} examples of up to {STEPS} steps: {time.monotonic() - began:.0f} s")
