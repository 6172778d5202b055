"""The proxy of the fault tests does to the network what its modes say."""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest
from servers.proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that says everything back."""
    listening = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with Proxy(*listening.getsockname()) as proxy:
        yield proxy
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def said(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return received(connection, len(data))


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def test_it_passes_bytes_and_the_end_of_them(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"x" * 200_000) == b"x" * 200_000
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_refusing_ends_what_there_is_and_heals(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.mode("refuse")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
    proxy.mode("pass")
    with connected(proxy) as client:
        assert said(client, b"b") == b"b"


def test_resetting_ends_what_there_is_and_what_comes(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert said(client, b"a") == b"a"
        proxy.mode("reset")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionResetError), connected(proxy) as client:
        said(client, b"a")


def test_a_black_hole_holds_everything_until_it_ends(proxy: Proxy) -> None:
    with connected(proxy) as old:
        assert said(old, b"a") == b"a"
        proxy.mode("blackhole")
        with connected(proxy) as new:
            for client in (old, new):
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    said(client, b"b")
            proxy.mode("pass")
            for client in (old, new):
                client.settimeout(5)
                assert client.recv(1) == b"b"


def test_answers_are_late(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.mode("latency", seconds=0.3)
        began = time.monotonic()
        assert said(client, b"a") == b"a"
        assert time.monotonic() - began >= 0.3


def test_a_connection_is_cut_after_some_bytes(proxy: Proxy) -> None:
    with connected(proxy) as old:
        assert said(old, b"a" * 50) == b"a" * 50
        proxy.mode("cut", after_bytes=3)
        with connected(proxy) as new:
            for client in (old, new):
                client.sendall(b"b" * 10)
                with pytest.raises(ConnectionResetError):
                    received(client, 10)


def test_refusing_forgets_no_connection_that_comes_at_that_moment(proxy: Proxy) -> None:
    """asyncio drops a transport unclosed whose server closes between accepting and serving it."""
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            with suppress(OSError):
                connected(proxy).close()

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        proxy.mode("refuse")
        proxy.mode("pass")
        time.sleep(0.002)
    over.set()
    for thread in threads:
        thread.join()
    with warnings.catch_warnings(record=True) as told:
        gc.collect()
    assert not told
