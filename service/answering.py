"""The running answers of this process: how many may be open, how one begins, how all are ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from functools import partial
from typing import Any

import structlog
from langchain_core.language_models import BaseChatModel

from memory import Strata, TurnRequest, User
from memory.config import ConfigSource
from memory.errors import StoreUnavailable
from memory.ids import UserKey
from memory.models import Turn
from memory.receipt import Context
from service.chat_models.answer import stream_answer
from service.config.settings import Settings
from service.http.bodies import ContextBody, Options, TurnBody, body_hash, lowered
from service.http.problems import Problem
from service.observability.metrics import Metrics
from service.streaming.events import run_of
from service.streaming.generation import Generation

log = structlog.get_logger("strata.turn")

RETRY_AFTER_SECONDS = 1.0
SIGNAL_SECONDS = 0.5
# Answers whose text so far is on its way to the store at the same time.
FLUSHES_AT_ONCE = 16


class Slot:
    """One open answer. It counts until the last of its holders has released it.

    Its taker holds it, and so do the answer's generation and each response of it: an answer that
    has ended still counts while a client reads it, however slowly.
    """

    __slots__ = ("_admission", "_holders", "_user_key")

    def __init__(self, admission: Admission, user_key: UserKey) -> None:
        self._admission = admission
        self._user_key = user_key
        self._holders = 1

    def hold(self) -> None:
        assert self._holders, "a free slot belongs to another answer"
        self._holders += 1

    def release(self) -> None:
        """Once for `take` and once for each `hold`."""
        assert self._holders, "a slot is released once by each of its holders"
        self._holders -= 1
        if self._holders == 0:
            self._admission.free(self._user_key)


class Admission:
    """Counts the open answers of this process, against a limit for each user and one for all."""

    def __init__(self, config: ConfigSource[Settings]) -> None:
        self._config = config
        self._open: Counter[UserKey] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """How many are open."""
        return self._count

    def take(self, user_key: UserKey) -> Slot:
        """A slot that the caller holds. Raises Problem: 429 `too_many_streams` when the user has
        all that one may have (checked first), 503 `overloaded` when the process has."""
        limits = self._config.current.limits
        if self._open[user_key] >= limits.streams_per_user:
            raise Problem(
                429,
                f"{limits.streams_per_user} answers of this user are open"
                " (limits.streams_per_user)",
                code="too_many_streams",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if self._count >= limits.streams:
            raise Problem(
                503,
                f"{limits.streams} answers are open here (limits.streams)",
                code="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._open[user_key] += 1
        self._count += 1
        return Slot(self, user_key)

    def free(self, user_key: UserKey) -> None:
        """For a slot that its last holder has released."""
        self._count -= 1
        self._open[user_key] -= 1
        if not self._open[user_key]:
            del self._open[user_key]


class Answers:
    """The running answers of this process. Each has a task of its own: none depends on the request
    that began it. `chat` is awaited by the first turn, if the model is not made until then."""

    def __init__(
        self,
        config: ConfigSource[Settings],
        strata: Strata,
        *,
        chat: asyncio.Task[BaseChatModel],
        model_name: str,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._strata = strata
        self._chat = chat
        self._model_name = model_name
        self._metrics = metrics
        self._running: dict[str, tuple[Generation, asyncio.Task[None]]] = {}  # by run id
        self._flushes = asyncio.Semaphore(FLUSHES_AT_ONCE)
        self.draining = False

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    def drained(self) -> bool:
        """Whether this process is stopping and its last answer has ended."""
        return self.draining and not self._running

    async def begin_turn(
        self,
        user: User,
        session_id: str,
        body: TurnBody,
        *,
        key: str | None = None,
        slot: Slot | None = None,
        started: float | None = None,
    ) -> Generation:
        """Accept a turn (or build the context of a stateless one) and start to answer it.

        `key` is the client's idempotency key, `slot` is held until the answer has ended, `started`
        is when the request came (time.perf_counter()). Everything that a status can report is
        raised here: what `Memory.begin` raises.
        """
        started = time.perf_counter() if started is None else started
        settings, memory = self._config.current, self._strata.memory
        request = TurnRequest(
            user=user,
            session_id=session_id,
            question=body.message,
            recall=body.recall,
            system=_system(settings, body.system),
            metadata=body.metadata,
            idempotency_key=key,
            body_hash=body_hash(session_id, body) if key is not None else "",
        )
        model = await asyncio.shield(self._chat)
        open_turn = context = None
        if body.memory is True:
            open_turn = await memory.begin(request)
        elif body.memory == "read":
            context = await memory.preview(request)
        else:
            context = memory.plain(request)
        generation = Generation(
            stream=partial(
                stream_answer,
                model,
                options=_call_options(body.options, settings.budget.answer_tokens),
                config=settings.model,
            ),
            model_name=self._model_name,
            open_turn=open_turn,
            context=context,
            session=settings.session,
            counter=self._strata.counter,
            metrics=self._metrics,
            flushes=self._flushes,
            started=started,
        )
        self._start(generation, slot)
        return generation

    async def preview(self, user: User, session_id: str, body: ContextBody) -> Context:
        """What a turn would send. Raises InvalidInput, BudgetExceeded, StoreUnavailable."""
        settings = self._config.current
        return await self._strata.memory.preview(
            TurnRequest(
                user=user,
                session_id=session_id,
                question=body.query,
                recall=body.recall,
                system=_system(settings, body.system),
                budget=lowered(settings.budget, body.budget),
            )
        )

    def find(self, turn: Turn) -> Generation | None:
        """What makes the answer of this attempt, if that is here."""
        found = self._running.get(run_of(turn))
        return found[0] if found else None

    async def heed_signals(self) -> None:
        """Do what other workers ask of turns that run here, until cancelled."""
        while True:
            await asyncio.sleep(SIGNAL_SECONDS)
            running = (generation for generation, _ in self._running.values())
            turns: dict[str, Turn] = {turn.id: turn for g in running if (turn := g.accepted_turn)}
            if not turns:
                continue
            try:
                signals = await self._strata.store.signals.read(list(turns.values()))
            except StoreUnavailable:
                continue
            except Exception:  # the edge of a task: it must outlive any single failure
                log.exception("signals.crashed")
                continue
            for turn_id, signal in signals.items():
                if generation := self.find(turns[turn_id]):
                    generation.watched_until = signal.watched
                    if signal.cancel:
                        generation.stop("cancelled")

    async def drain(self, grace_seconds: float) -> None:
        """Wait for the running answers, then store what the rest has and end them."""
        self.draining = True
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace_seconds
        while self._running and (left := ends - loop.time()) > 0:
            await asyncio.wait(self._tasks(), timeout=None if math.isinf(left) else left)
        # Turns that were being accepted when this began may still join them.
        while self._running:
            for generation, _ in list(self._running.values()):
                generation.stop("shutting_down")
            await asyncio.wait(self._tasks())

    def _start(self, generation: Generation, slot: Slot | None) -> None:
        if slot is not None:
            slot.hold()

        def ended(_: asyncio.Task[None]) -> None:
            self._running.pop(generation.run_id, None)
            if slot is not None:
                slot.release()

        task = asyncio.create_task(generation.run(), name="turn")
        self._running[generation.run_id] = generation, task
        task.add_done_callback(ended)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._running.values()]


def _system(settings: Settings, asked: str) -> str:
    return "\n\n".join(part for part in (settings.model.system, asked) if part)


def _call_options(options: Options, answer_tokens: int) -> dict[str, Any]:
    """What the model is called with; `answer_tokens` 0 sets no limit."""
    limits = [limit for limit in (options.max_tokens, answer_tokens) if limit]
    values = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": min(limits, default=None),
        "stop": options.stop,
    }
    return {name: value for name, value in values.items() if value is not None}
