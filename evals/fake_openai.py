"""A small OpenAI-compatible server on a real socket, for tests and for the bench: no model.

`python -m evals.fake_openai --port 0` prints `{"port": N}`. It answers `/v1/chat/completions`
(stream or not), `/v1/embeddings` and `/v1/models`; `GET /requests` is its log, `DELETE /requests`
answers with it and empties it. `POST /mode {"mode", "route"?, "text"?, "chunks"?, "delay"?,
"times"?}` makes it answer otherwise, or fail, for the next `times` requests of one route (default:
all of "chat").

Modes: `ok`, `slow` (`delay` seconds before each chunk), `429` (`delay` becomes Retry-After), any
other status such as `400` or `500`, `hang` (no answer), `hang_after`, `reset` and `cut` (silence, a
TCP reset, a clean end after `chunks` pieces), `bad_json`, `no_done` (all but `[DONE]`), `empty`,
`digest` (the answer is `digest(messages)` in four pieces, `delay` seconds before each), `marker`
(400 for what is to be embedded if `text` is in it). Else an answer is `text`, or an echo of the
question's end; a refusal is a `text` like any other.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import uvicorn

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

ECHOED_CHARACTERS = 60
DIMENSIONS = 64
_ROUTES = {"/v1/chat/completions": "chat", "/v1/embeddings": "embeddings", "/v1/models": "models"}
_MODELS = {"object": "list", "data": [{"id": "fake", "object": "model", "owned_by": "fake"}]}


@dataclass
class Mode:
    mode: str = "ok"
    text: str | None = None
    chunks: int = 0
    delay: float = 0.0
    times: int | None = None


@dataclass
class Request:
    """One line of the log. Times are `time.monotonic()`, which all processes here share."""

    path: str
    headers: dict[str, str]
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    disconnected_at: float | None = None
    sent: str = ""
    usage: dict[str, Any] | None = None

    def question(self) -> str:
        texts = [m["content"] for m in self.messages if m.get("role") == "user"]
        return str(texts[-1] if texts else self.options.get("input", ""))


class FakeOpenAI:
    """The ASGI application. Remembers the last requests."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque(maxlen=1000)
        self._modes: dict[str, Mode] = {}
        self._changed = asyncio.Event()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        path, given = scope["path"], json.loads(body or b"{}")
        if path in _ROUTES:
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            request = Request(path, headers, given.pop("messages", []), given)
            self.requests.append(request)
            await self._answer(_ROUTES[path], request, receive, send)
            return
        log = [vars(request) for request in self.requests]
        if scope["method"] == "DELETE":
            self.requests.clear()
        elif path == "/mode":
            self._modes.update({given.pop("route", "chat"): Mode(**given)})
            self._changed.set()
            self._changed = asyncio.Event()
        await _send(send, log)

    async def _answer(self, route: str, request: Request, receive: Receive, send: Send) -> None:
        answer = _Answer(request, self._next_mode(route), send, self._changed)
        work = asyncio.create_task(answer.run(route))
        left = asyncio.create_task(_left(receive))
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            request.disconnected_at = time.monotonic()
        for task in (work, left):
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await task

    def _next_mode(self, route: str) -> Mode:
        mode = self._modes.get(route, Mode())
        if mode.times == 0:
            return Mode()
        mode.times = mode.times and mode.times - 1
        return mode


class _Answer:
    def __init__(self, request: Request, mode: Mode, send: Send, changed: asyncio.Event) -> None:
        self._request, self._mode, self._send, self._changed = request, mode, send, changed

    async def run(self, route: str) -> None:
        mode, request = self._mode.mode, self._request
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "held":
            await self._changed.wait()
        if mode == "reset" and not self._mode.chunks:
            self._reset()
        elif mode == "marker" and self._mode.text and self._mode.text in str(request.options):
            await _send(self._send, {"error": {"message": "fault", "code": mode}}, status=400)
        elif mode.isdigit():
            # As some providers do: the error repeats what was sent.
            error = {"error": {"message": f"fault: {request.question()}", "code": mode}}
            more = {"retry-after": f"{self._mode.delay:g}"} if mode == "429" else {}
            await _send(self._send, error, status=int(mode), **more)
        elif route == "chat" and request.options.get("stream"):
            await self._stream()
        else:
            await asyncio.sleep(self._mode.delay)
            answer = {"chat": self._whole, "embeddings": self._embeddings}.get(route, dict)()
            text = json.dumps(answer or _MODELS)
            await _send(self._send, text[:20] if mode == "bad_json" else text)

    def _pieces(self) -> list[str]:
        if self._mode.mode == "empty":
            return []
        if self._mode.mode == "digest":
            return re.findall(".{16}", digest(self._request.messages))
        echo = f"You said: {self._request.question()[-ECHOED_CHARACTERS:]}"
        return re.findall(r"\s*\S+|\s+$", echo if self._mode.text is None else self._mode.text)

    def _usage(self, pieces: int) -> dict[str, Any]:
        words = sum(len(str(m.get("content")).split()) for m in self._request.messages)
        cached = {"prompt_tokens_details": {"cached_tokens": words // 2}}
        self._request.usage = {"prompt_tokens": words, "completion_tokens": pieces, **cached}
        return self._request.usage

    def _shape(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        same = {"id": "fake", "created": 0, "model": self._request.options.get("model", "fake")}
        return {**same, "object": kind, "choices": choices, **more}

    def _whole(self) -> dict[str, Any]:
        pieces = self._pieces()
        self._request.sent = "".join(pieces)
        message = {"role": "assistant", "content": self._request.sent}
        choice = {"message": message, "finish_reason": "stop"}
        usage = self._usage(len(pieces))
        return self._shape("chat.completion", [{"index": 0, **choice}], usage=usage)

    async def _stream(self) -> None:
        mode, pieces = self._mode, self._pieces()
        stops = mode.mode in ("hang_after", "reset", "cut")
        await _start(self._send, 200, **{"content-type": "text/event-stream"})
        for piece in pieces[: mode.chunks] if stops else pieces:
            await asyncio.sleep(mode.delay)
            self._request.sent += piece  # the log is ahead of the wire, never behind it
            await self._chunk({"role": "assistant", "content": piece})
        if mode.mode == "bad_json":
            await self._data('{"choices": [')
        if mode.mode == "hang_after":
            await asyncio.Event().wait()
        if mode.mode == "reset":
            return self._reset()
        if mode.mode != "cut":
            await self._chunk({}, finish_reason="stop")
            if (self._request.options.get("stream_options") or {}).get("include_usage"):
                await self._chunk(usage=self._usage(len(pieces)))
            if mode.mode != "no_done":
                await self._data("[DONE]")
        return await self._send({"type": "http.response.body", "body": b""})

    async def _chunk(self, *deltas: Any, finish_reason: str | None = None, **more: Any) -> None:
        choices = [{"index": 0, "delta": d, "finish_reason": finish_reason} for d in deltas]
        await self._data(json.dumps(self._shape("chat.completion.chunk", choices, **more)))

    async def _data(self, text: str) -> None:
        line = f"data: {text}\n\n".encode()
        await self._send({"type": "http.response.body", "body": line, "more_body": True})

    def _reset(self) -> None:
        """A TCP reset: uvicorn's `send` is a method of the object that owns the transport."""
        transport: asyncio.Transport = self._send.__self__.transport  # type: ignore[attr-defined]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _embeddings(self) -> dict[str, Any]:
        options = self._request.options
        texts = options["input"] if isinstance(options["input"], list) else [options["input"]]
        size = options.get("dimensions") or DIMENSIONS
        data = []
        for index, text in enumerate(texts):
            vector: Any = embed(str(text), size)
            if options.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        return {"object": "list", "data": data, "model": "fake", "usage": {"prompt_tokens": 0}}


def digest(messages: list[dict[str, Any]]) -> str:
    """The sha256 of a prompt, in hex. An answer with it proves that every message arrived."""
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def embed(text: str, size: int = DIMENSIONS) -> list[float]:
    """A bag of hashed words: texts that share words are near each other. Not normalised."""
    vector = [0.01] * size
    for word in re.findall(r"\w+", text.casefold()):
        vector[hashlib.sha256(word.encode()).digest()[0] % size] += 1.0
    return vector


async def _left(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, status: int, **headers: str) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _send(send: Send, value: Any, *, status: int = 200, **headers: str) -> None:
    await _start(send, status, **{"content-type": "application/json", **headers})
    text = value if isinstance(value, str) else json.dumps(value)
    await send({"type": "http.response.body", "body": text.encode()})


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(json.dumps({"port": self.servers[0].sockets[0].getsockname()[1]}), flush=True)


def main(port: Annotated[int, typer.Option(help="0 takes a free one")] = 0) -> None:
    config = uvicorn.Config(FakeOpenAI(), port=port, lifespan="off", log_level="warning")
    config.timeout_graceful_shutdown = 1
    _Server(config).run()


if __name__ == "__main__":
    typer.run(main)
