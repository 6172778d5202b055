"""The chat model: ChatOpenAI against any OpenAI-compatible server, or the offline one.

`stream_answer` is what a turn sees of either: pieces of text under deadlines, then the end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGenerationChunk

from memory.models import TurnError
from memory.receipt import ChatMessage
from service.config.settings import ModelConfig
from service.http.shapes import Options

_MESSAGES: dict[str, type[BaseMessage]] = {
    "system": SystemMessage,
    "user": HumanMessage,
    "assistant": AIMessage,
}


class ModelFailed(Exception):
    """The model did not answer as it should; `error` is what the client is told."""

    def __init__(self, error: TurnError) -> None:
        super().__init__(error.message)
        self.error = error


class Piece(NamedTuple):
    """Some text of an answer (maybe none) and what is known at its end."""

    text: str
    usage: dict[str, int] | None
    finish_reason: str | None


def make_chat_model(config: ModelConfig) -> BaseChatModel:
    """Imports langchain_openai, which takes a second or two: call it off the event loop."""
    if config.offline:
        from service.chat_models.offline import OfflineChat

        return OfflineChat()
    # The deadlines are those of `stream_answer`; another here is a timer more for every token.
    return _openai(config, config.name, read_seconds=math.inf)


def _openai(config: ModelConfig, name: str, *, read_seconds: float) -> BaseChatModel:
    from httpx import Timeout
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    class Chat(ChatOpenAI):
        """Hands the messages over as they are. The SDK else walks each one by its type hints to
        rename fields, of which none is renamed: 0.3 ms a message, on the event loop."""

        def _get_request_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            payload: dict[str, Any] = super()._get_request_payload(*args, **kwargs)
            ready = {**(payload.get("extra_body") or {}), "messages": payload["messages"]}
            return {**payload, "messages": [], "extra_body": ready}

    return Chat(
        model=name,
        base_url=config.base_url or "https://api.openai.com/v1",
        api_key=config.key or SecretStr("none"),
        stream_usage=True,
        max_retries=config.max_retries,
        # Its wait_for swallows a cancellation that comes with a chunk (Python 3.11); the deadlines
        # are kept below.
        stream_chunk_timeout=None,
        timeout=Timeout(_finite(config.first_token_timeout), read=_finite(read_seconds)),
    )


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def make_summarizer_model(config: ModelConfig) -> BaseChatModel | None:
    """None without a model: summaries are extracts then."""
    if config.offline:
        return None
    read_seconds = max(config.first_token_timeout, config.gap_timeout)
    return _openai(config, config.summary_name or config.name, read_seconds=read_seconds)


async def stream_answer(
    model: BaseChatModel,
    messages: Sequence[ChatMessage],
    *,
    options: Options,
    answer_tokens: int,
    config: ModelConfig,
) -> AsyncIterator[Piece]:
    """The answer piece by piece. Raises ModelFailed; the connection is closed on every way out."""
    sent = [_MESSAGES[message.role](message.content) for message in messages]
    # `astream` is `_astream` and callbacks, which nobody here listens to; for them it keeps every
    # chunk until the end: 2 kB a token, of every answer that runs.
    stream = model._astream(sent, **_call_options(options, answer_tokens))
    loop = asyncio.get_running_loop()
    turn_ends = loop.time() + config.turn_timeout
    wait = config.first_token_timeout
    ended = False
    try:
        async with aclosing(stream) as chunks:  # type: ignore[type-var]  # it is a generator
            while True:
                deadline = min(loop.time() + wait, turn_ends)
                async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                text = _text(chunk.message.content)
                if text:
                    wait = config.gap_timeout
                finish_reason = _finish_reason(chunk)
                ended = ended or finish_reason is not None
                yield Piece(text, _usage(chunk.message), finish_reason)
    except Exception as error:  # openai, httpx and langchain have no common base
        raise ModelFailed(_failure(error)) from error
    if not ended:
        raise ModelFailed(TurnError("model_error", "the model's answer broke off", True))


def _call_options(options: Options, answer_tokens: int) -> dict[str, Any]:
    limit = options.max_tokens or answer_tokens or None
    if options.max_tokens and answer_tokens:
        limit = min(options.max_tokens, answer_tokens)
    values = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": limit,
        "stop": options.stop,
    }
    return {name: value for name, value in values.items() if value is not None}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _finish_reason(chunk: ChatGenerationChunk) -> str | None:
    told: str | None = (chunk.generation_info or {}).get("finish_reason")
    return told or chunk.message.response_metadata.get("finish_reason")


def _usage(chunk: Any) -> dict[str, int] | None:
    usage = getattr(chunk, "usage_metadata", None)
    if not usage:
        return None
    found = {
        "prompt_tokens": usage.get("input_tokens", 0),
        "completion_tokens": usage.get("output_tokens", 0),
    }
    cached = (usage.get("input_token_details") or {}).get("cache_read")
    return found if cached is None else {**found, "cached_tokens": cached}


def _failure(error: Exception) -> TurnError:
    """What the client is told: what kind of failure, whether to try again; no inner text."""
    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TurnError("model_timeout", "the model did not answer in time", True)
    if status == 429:
        return TurnError(
            "model_error", "the model is over its rate limit", True, _retry_after(error)
        )
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409):
        return TurnError("model_error", f"the model refused the request ({status})", False)
    return TurnError("model_error", "the model failed", True, _retry_after(error))


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    try:
        return float(response.headers["retry-after"]) if response is not None else None
    except (KeyError, ValueError):
        return None
