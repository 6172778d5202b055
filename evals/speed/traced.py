"""Takes one streamed turn in a checkout under a profile and prints each call as a line of JSON.

`trace` runs this file with the checkout's own interpreter, in the checkout's folder; so it uses
nothing of this package, and finds the parts of the service under the names that they have or had.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from pathlib import Path
from types import FrameType
from typing import Any

QUESTION = "What is my dog called?"
SAID = {"a": [f"My dog number {n} is called Biscuit{n}." for n in range(3)],
        "b": [f"I like tea number {n}." for n in range(2)]}  # fmt: skip
DEADLINE_SECONDS = 60.0
DEPTH = 3  # an open turn holds a turn that holds a message that holds the question
_RESUMABLE = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
_FRESH = 4  # a frame whose last instruction is beyond has been entered before
_OF_THE_TURN = contextvars.ContextVar("of_the_turn", default=False)


class Profile:
    """The calls into memory/ and service/ that belong to the turn, in their order."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}{os.sep}"
        self._packages = (f"{root / 'memory'}{os.sep}", f"{root / 'service'}{os.sep}")
        self._tasks: dict[Any, int] = {}
        self.calls: list[dict[str, Any]] = []

    @contextmanager
    def active(self) -> Any:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self._packages):
            return
        if not _OF_THE_TURN.get() or code.co_name == "<module>":
            return
        if code.co_flags & _RESUMABLE and frame.f_lasti > _FRESH:
            return
        parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(self._packages):
            caller = caller.f_back
        self.calls.append(
            {
                "task": self._task(),
                "file": self._name(code.co_filename),
                "function": code.co_qualname,
                "caller": self._name(caller.f_code.co_filename) if caller else None,
                "carries": any(carries(frame.f_locals.get(name)) for name in parameters),
            }
        )

    def _name(self, path: str) -> str:
        return path.removeprefix(self._root)

    def _task(self) -> int | str:
        """Tasks by the order in which the turn reaches them; threads by their name."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return threading.current_thread().name.rpartition("_")[0]
        return self._tasks.setdefault(task, len(self._tasks))


def carries(value: Any, depth: int = DEPTH) -> bool:
    """Whether this is the question, or an object of the project around it: its attributes are
    followed, collections are not."""
    if isinstance(value, str):
        return QUESTION in value and len(value) < 2 * len(QUESTION)
    if depth == 0 or not type(value).__module__.startswith(("memory", "service")):
        return False
    return any(carries(inner, depth - 1) for inner in _attributes(value))


def _attributes(value: Any) -> list[Any]:
    names = list(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    names += getattr(type(value), "_fields", ())
    # Never by a property: it would run code of the project.
    return [getattr(value, name, None) for name in names if not name.startswith("__")]


def hand_on_the_context() -> None:
    """Work that the turn gives to a thread belongs to it as well."""
    submit = ThreadPoolExecutor.submit

    def submit_in_context(
        self: ThreadPoolExecutor, work: Callable[..., Any], /, *arguments: Any, **named: Any
    ) -> Any:
        return submit(self, contextvars.copy_context().run, work, *arguments, **named)

    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[assignment, method-assign]


def find(*places: str) -> Any:
    """The first of these `module:name` that there is."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of these is here: {', '.join(places)}")


async def call(app: Any, session: str, message: str) -> bytes:
    """The bytes of one streamed turn."""
    sent: list[bytes] = []
    body: list[bytes] = [json.dumps({"message": message}).encode()]
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(part: dict[str, Any]) -> None:
        sent.append(part.get("body", b""))

    path = f"/v1/sessions/{session}/turns"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)
    done.set()
    return b"".join(sent)


async def take_turn(profile: Profile) -> None:
    load = find("service.config.loading:load_settings", "service.settings:load_settings")
    open_services = find("service.services:open_services", "service.lifespan:open_services")
    create_app = find("service.app:create_app")
    settings = load(None)
    async with open_services(settings) as services, asyncio.timeout(DEADLINE_SECONDS):
        strata = services.strata
        caught_up = getattr(strata, "caught_up", None) or strata.settled
        app = create_app(settings, services)
        started, stop = asyncio.Event(), asyncio.Event()
        messages = ["lifespan.startup"]

        async def receive() -> dict[str, str]:
            if messages:
                return {"type": messages.pop()}
            await stop.wait()
            return {"type": "lifespan.shutdown"}

        async def send(part: Any) -> None:
            started.set()

        life = asyncio.create_task(
            app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        )
        await started.wait()
        await caught_up()
        for session, texts in SAID.items():
            for text in texts:
                await call(app, session, text)
        await caught_up()
        _OF_THE_TURN.set(True)  # in this task, and in what is made by it from here on
        with profile.active():
            answer = await call(app, "b", QUESTION)
        assert b"event: done" in answer, answer
        assert b"Biscuit" in answer, "nothing was recalled"
        stop.set()
        await life


def main() -> None:
    root = Path.cwd()
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory(prefix="strata-trace-") as folder:
        os.environ["STRATA_STORE__URL"] = f"sqlite:///{folder}/strata.db"
        os.environ["STRATA_INDEX__URL"] = f"edge:///{folder}/index"
        os.environ["STRATA_RECALL__DEADLINE"] = "10s"
        structlog = importlib.import_module("structlog")
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        )
        profile = Profile(root)
        # Threads take the profile when they start; it counts what belongs to the turn alone.
        threading.setprofile(profile)
        hand_on_the_context()
        asyncio.run(take_turn(profile))
    for line in profile.calls:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
