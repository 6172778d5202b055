"""What lives as long as the process: the memory, the chat model, the running answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog
from langchain_core.language_models import BaseChatModel

from memory import Strata, open_memory
from memory.context.assembly import check_question
from memory.errors import BudgetExceeded, ConfigError
from memory.summary import ModelSummarizer, Summarizer
from service.chat_models.answer import make_chat_model, make_summarizer_model
from service.chat_models.offline import NAME as OFFLINE
from service.config.settings import Settings
from service.observability.metrics import Metrics
from service.streaming.admission import Streams
from service.streaming.registry import AnswerRegistry

log = structlog.get_logger("strata")


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a route needs."""

    settings: Settings
    strata: Strata
    chat: asyncio.Task[BaseChatModel]
    answers: AnswerRegistry
    streams: Streams
    metrics: Metrics
    probes: dict[str, tuple[float, str]] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        return OFFLINE if self.settings.model.offline else self.settings.model.name

    async def drain(self) -> None:
        """Take no more turns; let the running ones end within `server.grace`, store the rest."""
        self.strata.memory.stop()
        await self.answers.drain(self.settings.server.grace)


class LateSummarizer:
    """A summarizer whose model is made at its first use, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: ModelSummarizer | None = None

    async def __call__(
        self, *, previous: str, new_text: str, max_tokens: int, must_keep: str
    ) -> str:
        if self._made is None:
            from memory.tokens import load_counter

            model = await asyncio.to_thread(make_summarizer_model, self._settings.model)
            assert model is not None
            counter = await asyncio.to_thread(load_counter, self._settings.model.name)
            self._made = ModelSummarizer(
                model,
                counter=counter,
                context_tokens=self._settings.budget.context_tokens,
                timeout_seconds=self._settings.model.turn_timeout,
            )
        return await self._made(
            previous=previous, new_text=new_text, max_tokens=max_tokens, must_keep=must_keep
        )


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open everything; on the way out answers are drained before the stores close.

    Raises ConfigError, StoreUnavailable.
    """
    started = time.perf_counter()
    name = OFFLINE if settings.model.offline else settings.model.name
    summarizer: Summarizer | None = None if settings.model.offline else LateSummarizer(settings)
    async with AsyncExitStack() as stack:
        strata = await stack.enter_async_context(
            open_memory(settings.memory(), chat_model=name, summarizer=summarizer)
        )
        try:
            check_question("", settings.model.system, settings.budget, strata.counter)
        except BudgetExceeded as error:
            raise ConfigError("model.system", str(error)) from error
        chat = asyncio.create_task(asyncio.to_thread(make_chat_model, settings.model))
        answers = AnswerRegistry()
        metrics = Metrics()
        strata.recall.timed = metrics.recalled
        limits = settings.limits
        services = Services(
            settings=settings,
            strata=strata,
            chat=chat,
            answers=answers,
            streams=Streams(per_user=limits.streams_per_user, total=limits.streams),
            metrics=metrics,
        )
        background = [
            asyncio.create_task(answers.listen(strata.store)),
            asyncio.create_task(
                metrics.keep_fresh(open_streams=lambda: len(answers), strata=strata)
            ),
        ]
        log.info(
            "opened",
            store=settings.store.url.partition("://")[0],
            index=settings.index.url.partition(":")[0],
            model=name,
            embedding=strata.embeddings.state,
            recall="by words" if strata.embeddings.state != "ready" else "by meaning and words",
            summary="extracts" if summarizer is None else "by the model",
            tokens="estimated" if strata.counter.estimated else "exact",
            seconds=round(time.perf_counter() - started, 2),
        )
        try:
            yield services
        finally:
            await services.drain()
            for task in (*background, chat):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
