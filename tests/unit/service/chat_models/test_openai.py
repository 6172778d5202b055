"""Canary: the client still makes its requests by `_get_request_payload`, and still sends what is
in `extra_body` beside it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import SecretStr

from service.chat_models.openai import make_openai
from service.config.settings import ModelConfig

MESSAGES = [SystemMessage("be brief"), HumanMessage("hello")]


def test_the_overridden_method_is_there() -> None:
    assert "_get_request_payload" in vars(ChatOpenAI)
    assert "_get_request_payload" in vars(BaseChatOpenAI)


DATA = {
    "id": "1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "fake",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}],
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def test_the_server_gets_the_messages_as_the_library_would_send_them() -> None:
    sent: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
        sent.append(json.loads(await reader.readexactly(length)))
        writer.write(HEAD + f"data: {json.dumps(DATA)}\n\ndata: [DONE]\n\n".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ours = make_openai(ModelConfig(base_url=url, max_retries=0), "fake", read_seconds=5)
        plain = ChatOpenAI(
            model="fake", base_url=url, api_key=SecretStr("none"), stream_usage=True, max_retries=0
        )
        for model in (ours, plain):
            chunks = [c async for c in model._astream(MESSAGES, temperature=0.5, stop=["x"])]
            assert chunks[0].text == "hi"
    assert sent[0] == sent[1]
    assert [m["content"] for m in sent[0]["messages"]] == ["be brief", "hello"]
