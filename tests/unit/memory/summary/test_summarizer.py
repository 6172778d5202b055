from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr

from evals.fake_openai import FakeOpenAI, Mode
from memory.summary import ModelSummarizer, Summarizer
from unit.builders import counter


class Listening(FakeListChatModel):
    """LangChain's own fake, with a memory of what it was sent."""

    sent: list[BaseMessage] = Field(default_factory=list)
    given: dict[str, Any] = Field(default_factory=dict)

    def _call(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> str:
        self.sent[:] = messages
        self.given.update(kwargs)
        return super()._call(messages, *args, **kwargs)


class Hanging(FakeListChatModel):
    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        await asyncio.Event().wait()
        raise AssertionError


def summarizer(model: BaseChatModel, *, timeout_seconds: float = 5.0) -> Summarizer:
    return ModelSummarizer(
        model, counter=counter(), context_tokens=1000, timeout_seconds=timeout_seconds
    )


async def test_a_chat_model_reads_the_summary_so_far_the_messages_and_what_must_be_kept() -> None:
    model = Listening(responses=["Bruno moved to Lyon."])
    text = await summarizer(model)(
        previous="Bruno.", new_text="User: I moved to Lyon.", max_tokens=100, must_keep="Zürich"
    )
    assert text == "Bruno moved to Lyon."
    system, user = model.sent
    assert (system.type, user.type) == ("system", "human")
    assert "running summary" in system.text
    assert user.text == (
        "Summary so far:\nBruno.\n\nNew messages:\nUser: I moved to Lyon.\n\n"
        "These statements must be in the summary:\nZürich"
    )
    assert model.given["temperature"] == 0


async def test_a_prompt_is_cut_to_what_the_model_can_read() -> None:
    model = Listening(responses=["ok"])
    await summarizer(model)(
        previous="Bruno.", new_text="word " * 5000, max_tokens=100, must_keep="Zürich"
    )
    system, user = model.sent
    assert counter().count(user.text) <= 700
    assert "Summary so far:\nBruno." in user.text
    assert user.text.endswith("Zürich")
    assert "50 words" in system.text


async def test_a_model_that_hangs_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        await summarizer(Hanging(responses=[""]), timeout_seconds=0.01)(
            previous="", new_text="hello", max_tokens=100, must_keep=""
        )


def openai(server: FakeOpenAI) -> ChatOpenAI:
    """The real client, whose requests reach the server without a socket."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=server))
    return ChatOpenAI(
        model="fake", base_url="http://model/v1", api_key=SecretStr("none"), max_retries=0,
        http_async_client=client,
    )  # fmt: skip


async def test_the_openai_client_serves_as_a_summarizer() -> None:
    server = FakeOpenAI()
    server._modes["chat"] = Mode(text="They met.")
    text = await summarizer(openai(server))(
        previous="", new_text="User: I met Maria.", max_tokens=100, must_keep=""
    )
    assert text == "They met."
    (request,) = server.requests
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert "I met Maria." in request.question()
    assert request.options["temperature"] == 0


async def test_what_the_openai_client_raises_is_raised() -> None:
    server = FakeOpenAI()
    server._modes["chat"] = Mode("500")
    with pytest.raises(Exception, match="500"):
        await summarizer(openai(server))(
            previous="", new_text="User: I met Maria.", max_tokens=100, must_keep=""
        )
