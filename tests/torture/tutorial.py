"""The control: chat history as the usual tutorials keep it. It loses turns, and that must be seen.

`python -m torture.tutorial --model URL [--file PATH] --port 0` prints its port. For each turn it
reads the session's list, calls the model with it, and writes the list back with two messages more:
in a dict of this process, or in one JSON file. Routes and events are those of the service.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

Messages = list[dict[str, Any]]
TURN = re.compile(r"/v1/sessions/([^/]+)/(turns|messages)")


class Histories:
    """Lists by user and session."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lists: dict[str, Messages] = {}

    def _load(self) -> dict[str, Messages]:
        if self._file is None or not self._file.exists():
            return self._lists
        lists: dict[str, Messages] = json.loads(self._file.read_text() or "{}")
        return lists

    def get(self, key: str) -> Messages:
        return list(self._load().get(key, []))

    def set(self, key: str, messages: Messages) -> None:
        lists = {**self._load(), key: messages}
        if self._file is None:
            self._lists = lists
        else:
            self._file.write_text(json.dumps(lists))


class Tutorial:
    def __init__(self, model_url: str, histories: Histories) -> None:
        self._histories = histories
        self._model = httpx.AsyncClient(base_url=model_url, trust_env=False, timeout=60)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        match = TURN.fullmatch(scope["path"])
        assert match is not None
        user = dict(scope["headers"])[b"x-user-id"].decode()
        key = f"{user}/{match[1]}"
        if match[2] == "messages":
            text = json.dumps({"messages": self._histories.get(key), "next_before": None})
            await _start(send, "application/json")
            await send({"type": "http.response.body", "body": text.encode()})
            return
        await _start(send, "text/event-stream")
        async for name, data in self._turn(key, match[1], json.loads(body)["message"]):
            event = f"event: {name}\nid: {key}:{name}\ndata: {json.dumps(data)}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _turn(self, key: str, session: str, text: str) -> AsyncIterator[tuple[str, Any]]:
        messages = self._histories.get(key)
        seq = len(messages) + 1
        turn = f"{key}:{seq}"
        yield "accepted", {"turn_id": turn, "session_id": session, "seq": seq}
        question = {"role": "user", "content": text}
        said = [{"role": m["role"], "content": m["content"]} for m in messages]
        answer = ""
        sent = {"stream": True, "messages": [*said, question]}
        async with self._model.stream("POST", "/v1/chat/completions", json=sent) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        piece = choice["delta"].get("content", "")
                        answer += piece
                        yield "token", {"text": piece}
        reply = {"role": "assistant", "content": answer}
        for place, message in enumerate((question, reply)):
            more = {"id": f"{turn}.{place}", "seq": seq + place, "status": "done"}
            messages.append({**message, **more})
        self._histories.set(key, messages)
        done = {"turn_id": turn, "message_id": f"{turn}.1", "finish_reason": "stop", "usage": None}
        yield "done", done


async def _start(send: Any, kind: str) -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m torture.tutorial")
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    app = Tutorial(given.model, Histories(given.file))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(app, lifespan="off", log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
