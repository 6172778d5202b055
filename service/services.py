"""What lives as long as the process: the memory, the chat model, the running answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from langchain_core.language_models import BaseChatModel

from memory import Strata, open_memory
from memory.config import ConfigSource
from memory.context.assembly import check_question
from memory.errors import BudgetExceeded, ConfigError
from memory.summary import ModelSummarizer, Summarizer
from memory.tokens import load_counter
from service.answering import Admission, Answers
from service.chat_models import make_chat_model, make_summary_model
from service.chat_models.offline import NAME as OFFLINE
from service.config.settings import Settings
from service.observability.metrics import Metrics

log = structlog.get_logger("strata")


@dataclass(frozen=True, kw_only=True)
class Services:
    """What routes and commands work with. `config.current` is the configuration that counts now;
    `chat` is done once the chat model is made."""

    config: ConfigSource[Settings]
    strata: Strata
    chat: asyncio.Task[BaseChatModel]
    model_name: str
    answers: Answers
    admission: Admission
    metrics: Metrics
    probes: dict[str, tuple[float, str]] = field(default_factory=dict)

    async def drain(self) -> None:
        """Take no more turns; let the running ones end within `server.grace`, store the rest."""
        self.strata.memory.stop()
        await self.answers.drain(self.config.current.server.grace)


class LateSummarizer:
    """A Summarizer whose model is made at its first use, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: ModelSummarizer | None = None

    async def __call__(self, **call: Any) -> str:
        if self._made is None:
            settings = self._settings
            self._made = ModelSummarizer(
                await asyncio.to_thread(make_summary_model, settings.model),
                counter=await asyncio.to_thread(load_counter, settings.model.name),
                context_tokens=settings.budget.context_tokens,
                timeout_seconds=settings.model.turn_timeout,
            )
        return await self._made(**call)


@asynccontextmanager
async def open_services(
    settings: Settings, *, config: ConfigSource[Settings] | None = None
) -> AsyncIterator[Services]:
    """Open everything as `settings` say; on the way out answers are drained before the stores
    close. Later changes come by `config`, if it is given.

    Raises ConfigError, StoreUnavailable, IndexUnavailable.
    """
    opening = time.perf_counter()
    name = OFFLINE if settings.model.offline else settings.model.name
    summarizer: Summarizer | None = None if settings.model.offline else LateSummarizer(settings)
    config, metrics = config or ConfigSource(settings), Metrics()
    async with AsyncExitStack() as stack:
        strata = await stack.enter_async_context(
            open_memory(settings.memory(), chat_model=name, summarizer=summarizer)
        )
        try:
            check_question("", settings.model.system, settings.budget, strata.counter)
        except BudgetExceeded as error:
            raise ConfigError("model.system", str(error)) from error
        chat = asyncio.create_task(asyncio.to_thread(make_chat_model, settings.model))
        strata.recall.timed = metrics.recall_seconds.observe
        answers = Answers(config, strata, chat=chat, model_name=name, metrics=metrics)
        services = Services(
            config=config,
            strata=strata,
            chat=chat,
            model_name=name,
            answers=answers,
            admission=Admission(config),
            metrics=metrics,
        )
        background = [
            asyncio.create_task(answers.heed_signals()),
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
            seconds=round(time.perf_counter() - opening, 2),
        )
        try:
            yield services
        finally:
            await services.drain()
            for task in (*background, chat):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
