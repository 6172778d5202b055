"""What a turn sees of a chat model: pieces of text under deadlines, then the end.

The only file that uses LangChain's private `_astream`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import convert_to_messages
from langchain_core.outputs import ChatGenerationChunk

from memory.models import TurnError
from memory.receipt import ChatMessage
from service.config.settings import ModelConfig


class ModelFailed(Exception):
    """The model did not answer as it should; `error` is what the client gets."""

    def __init__(self, error: TurnError) -> None:
        super().__init__(error.message)
        self.error = error


class Piece(NamedTuple):
    """Some text of an answer (maybe none) and what is known at its end."""

    text: str
    usage: dict[str, int] | None
    finish_reason: str | None


async def stream_answer(
    model: BaseChatModel,
    messages: Sequence[ChatMessage],
    *,
    options: Mapping[str, Any],
    config: ModelConfig,
) -> AsyncIterator[Piece]:
    """The answer piece by piece, within the deadlines of `config`. Raises ModelFailed; the
    connection to the model is closed on every way out."""
    sent = convert_to_messages([(message.role, message.content) for message in messages])
    # `astream` is `_astream` with callbacks, which are not used here; for them it keeps every
    # chunk until the end: 2 kB a token, of every answer that runs.
    stream = model._astream(sent, **options)
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
                content = chunk.message.content
                # Its own `text` makes an object of it, which costs four times as much.
                text = content if isinstance(content, str) else str(chunk.message.text)
                if text:
                    wait = config.gap_timeout
                finish_reason = _finish_reason(chunk)
                ended = ended or finish_reason is not None
                yield Piece(text, _usage(chunk.message), finish_reason)
    except Exception as error:  # openai, httpx and langchain have no common base
        raise ModelFailed(_failure(error)) from error
    if not ended:
        raise ModelFailed(TurnError("model_error", "the model's answer broke off", True))


def _finish_reason(chunk: ChatGenerationChunk) -> str | None:
    reason: str | None = (chunk.generation_info or {}).get("finish_reason")
    return reason or chunk.message.response_metadata.get("finish_reason")


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
    """What the client gets to know: the kind of failure and whether to try again, none of its
    text."""
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
