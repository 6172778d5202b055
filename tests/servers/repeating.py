"""A proxy that repeats a write, as a driver does that lost the answer.

It speaks MongoDB's wire protocol just enough to tell messages apart: the next message that holds
`command` reaches the server twice, and the client sees the second answer alone. A server that
recognises repeated writes answers both alike; others carry the second one out.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress

MORE_TO_COME = 2


class Repeating:
    """Passes 127.0.0.1:`port` on to the target (through TLS if `tls`), one message at a time."""

    def __init__(self, host: str, port: int, *, tls: bool) -> None:
        self._target = (host, port)
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._command: bytes | None = None
        self.repeated = 0
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Repeating:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in (self._listening, *self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(5)

    def repeat(self, command: str) -> None:
        """The next message with this command is sent twice."""
        self._command = command.encode() + b"\0"  # as the name of a BSON field ends

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                if self._tls:
                    trusting = ssl.create_default_context()
                    trusting.check_hostname = False
                    trusting.verify_mode = ssl.CERT_NONE
                    server = trusting.wrap_socket(server)
                self._open += [client, server]
                thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), client, server:
            while asked := _message(client):
                if self._wanted(asked):
                    server.sendall(asked)
                    _message(server)
                server.sendall(asked)
                while answer := _message(server):
                    client.sendall(answer)
                    if not answer[16] & MORE_TO_COME:
                        break

    def _wanted(self, message: bytes) -> bool:
        with self._lock:
            if self._command is None or self._command not in message[:64]:
                return False
            self._command = None
            self.repeated += 1
            return True


def _message(connection: socket.socket) -> bytes:
    """A whole message (it begins with its length); empty at the end."""
    head = _exactly(connection, 4)
    return head and head + _exactly(connection, int.from_bytes(head, "little") - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data
