from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import Field

from memory.receipt import ChatMessage
from service.chat_models.answer import ModelFailed, Piece, stream_answer
from service.chat_models.offline import OfflineChat
from service.config.settings import ModelConfig

ASKED = [
    ChatMessage("system", "be brief"),
    ChatMessage("user", "hello"),
    ChatMessage("assistant", "hi"),
    ChatMessage("user", "and?"),
]


class Scripted(BaseChatModel):
    """Sends these chunks, each after `seconds`; keeps what it was called with."""

    chunks: list[AIMessageChunk]
    seconds: float = 0.0
    called: list[Any] = Field(default_factory=list)
    closed: list[bool] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise AssertionError("only streams")

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.called.append((messages, kwargs))
        try:
            for chunk in self.chunks:
                await asyncio.sleep(self.seconds)
                yield ChatGenerationChunk(message=chunk)
        finally:
            self.closed.append(True)


def chunk(content: Any, **more: Any) -> AIMessageChunk:
    return AIMessageChunk(content=content, **more)


END = chunk("", response_metadata={"finish_reason": "stop"})


async def pieces(model: BaseChatModel, **config: Any) -> list[Piece]:
    answer = stream_answer(
        model, ASKED, options={"temperature": 0.5}, config=ModelConfig.model_validate(config)
    )
    return [piece async for piece in answer]


def test_langchain_still_streams_by_a_private_method_with_this_signature() -> None:
    """Canary: `astream` wraps it, and keeps every chunk until the end."""
    found = BaseChatModel._astream.__code__
    assert found.co_varnames[: found.co_argcount] == ("self", "messages", "stop", "run_manager")


async def test_the_model_gets_the_messages_with_their_roles_and_the_options() -> None:
    model = Scripted(chunks=[chunk("yes"), END])
    assert [piece.text for piece in await pieces(model)] == ["yes", ""]
    ((messages, options),) = model.called
    assert [(m.type, m.content) for m in messages] == [
        ("system", "be brief"), ("human", "hello"), ("ai", "hi"), ("human", "and?"),
    ]  # fmt: skip
    assert options == {"temperature": 0.5}


async def test_text_in_parts_is_text_and_the_end_says_what_it_cost() -> None:
    usage = {
        "input_tokens": 5, "output_tokens": 2, "total_tokens": 7,
        "input_token_details": {"cache_read": 3},
    }  # fmt: skip
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    found = await pieces(Scripted(chunks=[chunk(parts), END, chunk("", usage_metadata=usage)]))
    assert [(piece.text, piece.finish_reason) for piece in found] == [
        ("one two", None), ("", "stop"), ("", None),
    ]  # fmt: skip
    assert type(found[0].text) is str
    assert found[-1].usage == {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3}


@pytest.mark.parametrize(
    ("deadlines", "before"),
    [
        ({"first_token_timeout": 0.05}, 0),
        ({"gap_timeout": 0.05, "first_token_timeout": 30}, 1),
        ({"turn_timeout": 0.25, "gap_timeout": 30}, 1),
    ],
)
async def test_each_deadline_ends_the_answer_and_closes_the_stream(
    deadlines: dict[str, float], before: int
) -> None:
    model = Scripted(chunks=[chunk("word ")] * 50, seconds=0.1)
    config = ModelConfig.model_validate(deadlines)
    found: list[Piece] = []

    async def read() -> None:
        async for piece in stream_answer(model, ASKED, options={}, config=config):
            found.append(piece)

    with pytest.raises(ModelFailed) as failed:
        await read()
    assert (failed.value.error.code, failed.value.error.retryable) == ("model_timeout", True)
    assert before <= len(found) < 10
    assert model.closed == [True]


async def test_an_answer_without_an_end_has_broken_off() -> None:
    with pytest.raises(ModelFailed) as failed:
        await pieces(Scripted(chunks=[chunk("half an ")]))
    assert failed.value.error.code == "model_error"


async def test_the_offline_model_streams_like_any_other() -> None:
    found = await pieces(OfflineChat())
    assert "".join(piece.text for piece in found).startswith("(offline model) ")
    assert found[-1].finish_reason == "stop"
