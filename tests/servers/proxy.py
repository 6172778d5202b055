"""A TCP proxy that breaks the network on demand, for any server and any client.

    with Proxy("127.0.0.1", 27017) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        proxy.mode("blackhole")

It works in a thread of its own, so tests of any kind can use it. A mode holds at once, for the
connections there are and for new ones, when `mode` returns.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

Mode = Literal["pass", "refuse", "reset", "blackhole", "latency", "cut"]
# Every way in which a server can be away.
FAULTS: list[tuple[Mode, dict[str, Any]]] = [
    ("refuse", {}),
    ("reset", {}),
    ("blackhole", {}),
    ("latency", {"seconds": 5.0}),
    ("cut", {"after_bytes": 100}),
]
CHUNK = 65536
AHEAD = 16  # pieces
WAIT_SECONDS = 10.0


class Proxy:
    """Passes 127.0.0.1:`port` on to the target.

    - `pass`: nothing happens to the bytes;
    - `refuse`: nobody listens, connections that exist are reset;
    - `reset`: connections are accepted and reset, those that exist too;
    - `blackhole`: connections are accepted and nothing passes, in either direction; what was sent
      meanwhile arrives when the mode changes, as it does when a network heals;
    - `latency`: each piece of an answer arrives `seconds` late;
    - `cut`: a connection is reset once `after_bytes` of answers have passed it since now.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None  # bound without listening: it refuses
        self._mode: Mode = "pass"
        self._seconds = 0.0
        self._after_bytes = 0
        self._changed = asyncio.Event()
        self.port = 0
        self.accepted = 0  # connections so far, those that were reset at once included

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> int:
        """The port it listens on."""
        self._thread.start()
        self._run(self._listen())
        return self.port

    def stop(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)
        self._loop.close()

    def mode(self, mode: Mode, *, seconds: float = 0.0, after_bytes: int = 0) -> None:
        self._run(self._change(mode, seconds, after_bytes))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    async def _change(self, mode: Mode, seconds: float, after_bytes: int) -> None:
        self._mode, self._seconds, self._after_bytes = mode, seconds, after_bytes
        for pair in self._pairs:
            pair.answered = 0
        self._changed.set()
        self._changed = asyncio.Event()
        if mode in ("refuse", "reset"):
            for pair in list(self._pairs):
                pair.reset()
        if mode == "refuse":
            if self._server is not None:
                await self._close_server()
                self._reserved = self._bound()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        listening, self._reserved = self._reserved or self._bound(), None
        self._server = await asyncio.start_server(self._accept, sock=listening)

    async def _close_server(self) -> None:
        """A connection that asyncio has accepted and not yet made a transport of would be left
        open by a server that closes in between (its `_attach` asserts): those are made first."""
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                self._loop.remove_reader(listening)
            await asyncio.sleep(0)
            server.close()

    def _bound(self) -> socket.socket:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", self.port))
        self.port = found.getsockname()[1]
        return found

    async def _stop(self) -> None:
        self._mode = "refuse"
        await self._close_server()
        if self._reserved is not None:
            self._reserved.close()
        for pair in list(self._pairs):
            pair.reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # the transports that were aborted close their sockets

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine: one that is cancelled before its first step would forget its connection.
        self.accepted += 1
        pair = _Pair(writer)
        if self._mode in ("refuse", "reset"):
            pair.reset()
            return
        self._pairs.add(pair)
        pair.passing = self._loop.create_task(self._pass_between(reader, writer, pair))

    async def _pass_between(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        try:
            await self._while_black()
            answers, onward = await asyncio.open_connection(*self._target)
            pair.writers.append(onward)
            await asyncio.gather(
                self._pass_on(reader, onward), self._pass_on(answers, writer, answering=pair)
            )
        except (OSError, asyncio.CancelledError):  # the target is away, an end left, or `stop`
            pass
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def _while_black(self) -> None:
        while self._mode == "blackhole":
            await self._changed.wait()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answering: _Pair | None = None,
    ) -> None:
        """Until the end of what `reader` gives; `answering` is set towards the client."""
        pieces: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(AHEAD)
        reading = asyncio.create_task(self._read(reader, pieces))
        try:
            await self._write(pieces, writer, answering)
        finally:
            reading.cancel()

    async def _read(
        self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        """Note when each piece comes: one that is late does not make the next one later. The last
        is empty, or None where the connection was reset."""
        data: bytes | None = b"."
        while data:
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = None
            await pieces.put((self._loop.time(), data))

    async def _write(
        self,
        pieces: asyncio.Queue[tuple[float, bytes | None]],
        writer: asyncio.StreamWriter,
        answering: _Pair | None,
    ) -> None:
        while (piece := await pieces.get())[1]:
            came, data = piece
            if answering is not None and self._mode == "latency":
                late = came + self._seconds - self._loop.time()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), max(0.0, late))
            await self._while_black()
            if answering is not None and self._mode == "cut":
                data = data[: max(0, self._after_bytes - answering.answered)]
            writer.write(data)
            await writer.drain()
            if answering is not None:
                answering.answered += len(data)
                if self._mode == "cut" and answering.answered >= self._after_bytes:
                    raise ConnectionResetError
        if piece[1] is None:
            raise ConnectionResetError
        await self._while_black()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()


class _Pair:
    """A connection of a client and the one to the target that belongs to it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.answered = 0
        self.passing: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Both ends see a reset connection (a close that lingers zero seconds)."""
        for writer in self.writers:
            connection = writer.get_extra_info("socket")
            with suppress(OSError):
                now = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            writer.transport.abort()
