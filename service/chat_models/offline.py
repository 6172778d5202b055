"""The chat model of a configuration that names none: it quotes the recalled text, and says so.

To everything around it, it is a LangChain chat model like any other.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from memory.recall.packing import CLOSE, OPEN
from memory.text import split_unspaced, words

NAME = "offline"
_BLOCK = re.compile(f"{OPEN}\n(.*?)\n{CLOSE}", re.DOTALL)
_DAY = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}:")
_COMMON = frozenset(
    "what which who whom whose when where why how is are was were do does did the a an my your "
    "our i you me we it of to in on at for and or".split()
)
MAX_LINES = 3


class OfflineChat(BaseChatModel):
    """Quotes the recalled lines that share the most words with the question."""

    @property
    def _llm_type(self) -> str:
        return NAME

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for piece in re.findall(r"\s*\S+", answer([str(message.text) for message in messages])):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        ended = {"finish_reason": "stop", "model_name": NAME}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", response_metadata=ended))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


def answer(contents: list[str]) -> str:
    """The best lines of the recall block in the last of these messages, or that there are none."""
    last = contents[-1] if contents else ""
    block = _BLOCK.search(last)
    question = last[block.end() :] if block else last
    lines = _best_lines(block[1], question) if block else []
    if not lines:
        return "(offline model) Nothing that was said earlier seems to match this."
    return "(offline model) What I remember of this: " + " | ".join(lines)


def _best_lines(block: str, question: str) -> list[str]:
    wanted = _content_words(question)
    scored, day = [], ""
    for position, line in enumerate(block.splitlines()):
        if _DAY.fullmatch(line.strip()):
            day = line.strip().rstrip(":")
            continue
        shared = len(wanted & _content_words(line))
        is_user = not line.startswith("Assistant: ")
        is_question = line.rstrip().endswith(("?", "？"))
        scored.append((shared > 0 and not is_question, shared, is_user, -position, day, line))
    scored.sort(reverse=True)
    best = [entry for entry in scored if entry[0]] or scored[:1]
    return [f"{line.strip()} ({day})" for *_, day, line in best[:MAX_LINES]]


def _content_words(text: str) -> set[str]:
    return {word.casefold() for word in words(split_unspaced(text))} - _COMMON
