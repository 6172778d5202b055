"""Strata in LangChain applications: recall as a retriever, a session as a chat history.

Use the asynchronous forms (`ainvoke`). A memory belongs to the event loop in which it was opened:
the synchronous forms work only from other threads, with an object that was made in that loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, InstanceOf, PrivateAttr, SkipValidation

from memory.errors import NotFound
from memory.log.transitions import Incoming
from memory.models import Message, Role, User
from memory.strata import Strata

T = TypeVar("T")


class StrataRetriever(BaseRetriever):
    """The user's messages that fit a question, best first, from all sessions or one.

    A document's `page_content` is the whole message; its metadata are `message_id`,
    `session_id`, `role`, `created_at` (ISO 8601), `score` and, if it has one, `speaker`.
    When the index does not answer, there are fewer documents, or none; the call succeeds.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    strata: SkipValidation[Strata]
    user: InstanceOf[User]
    k: int = 8
    session_id: str | None = None
    role: Role | None = None
    _loop: asyncio.AbstractEventLoop | None = PrivateAttr(default_factory=lambda: _running())

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return await self._documents(query)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return _wait(self._loop, lambda: self._documents(query))

    async def _documents(self, query: str) -> list[Document]:
        found = await self.strata.history.memories(
            self.user, query=query, limit=self.k, session_id=self.session_id, role=self.role
        )
        return [
            Document(
                page_content=item.message.content,
                metadata={
                    "message_id": item.message.id,
                    "session_id": item.session_id,
                    "role": item.message.role,
                    "created_at": item.message.created_at.isoformat(),
                    "score": item.score,
                    **({"speaker": item.message.speaker} if item.message.speaker else {}),
                },
            )
            for item in found.items
        ]


class StrataChatMessageHistory(BaseChatMessageHistory):
    """One session of a user, for applications built on `RunnableWithMessageHistory`.

    LangChain has deprecated that class and the base of this one (removal in 2.0). New applications
    ask Strata for a context, which keeps to a budget.

    Reading gives the newest `limit` messages, oldest first. Messages of users and models are
    stored; messages without text (tool calls) and of other kinds (system, tool) are passed over.
    A message whose `id` the session has is not stored again. Clearing erases the session.
    """

    def __init__(self, strata: Strata, user: User, session_id: str, *, limit: int = 50) -> None:
        self._strata = strata
        self._user = user
        self._session_id = session_id
        self._limit = limit
        self._loop = _running()

    async def aget_messages(self) -> list[BaseMessage]:
        try:
            found, _ = await self._strata.history.messages(
                self._user, self._session_id, before=None, limit=self._limit
            )
        except NotFound:
            return []
        return [_said(message) for message in found if message.content]

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        kept = [
            Incoming(
                role="user" if isinstance(message, HumanMessage) else "assistant",
                content=str(message.text),
                speaker=message.name,
                id=message.id,
            )
            for message in messages
            if isinstance(message, HumanMessage | AIMessage) and message.text.strip()
        ]
        if kept:
            await self._strata.memory.record(self._user, self._session_id, kept)

    async def aclear(self) -> None:
        try:
            await self._strata.history.delete_session(self._user, self._session_id)
        except NotFound:
            return

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        return _wait(self._loop, self.aget_messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        _wait(self._loop, lambda: self.aadd_messages(messages))

    def clear(self) -> None:
        _wait(self._loop, self.aclear)


def _said(message: Message) -> BaseMessage:
    kind = HumanMessage if message.role == "user" else AIMessage
    return kind(content=message.content, name=message.speaker, id=message.id)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wait(loop: asyncio.AbstractEventLoop | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` in `loop` and wait for it, in a thread without a running loop. Raises RuntimeError
    in a thread that has one, or without `loop`."""
    if _running() is not None:
        raise RuntimeError("an event loop runs in this thread: use the asynchronous form (ainvoke)")
    if loop is None:
        raise RuntimeError("made outside of the memory's event loop: make it there, or use ainvoke")
    return asyncio.run_coroutine_threadsafe(work(), loop).result()
