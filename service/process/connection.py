"""One connection of a client, as uvicorn serves it."""

from __future__ import annotations

import asyncio
import socket
import sys

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# What the kernel (which doubles the number) buffers for a client that reads slowly. Left alone,
# Linux buffers over 2 MB for a connection that nobody reads.
SEND_BUFFER_BYTES = 32_768
# How long a client that confirms nothing of what was sent keeps its place. Linux alone would ask a
# lost phone for a quarter of an hour, and wait for ever for one that is only stuck. One that comes
# back resumes.
STUCK_SECONDS = 300.0


class Connection(HttpToolsProtocol):
    """A response waits for a client that does not read, instead of being buffered for it; the
    connection ends when the client has confirmed nothing for `STUCK_SECONDS` (Linux)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        connected: socket.socket = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if sys.platform == "linux":
            milliseconds = round(STUCK_SECONDS * 1000)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
