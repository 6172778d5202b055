"""A Qdrant server for tests: the REST calls that Strata and langchain-qdrant make, answered by the
server's own engine (Qdrant Edge, one shard for each collection) over a real socket.

    python -m servers.qdrant --port 0 --folder DIR [--api-key KEY]      (PYTHONPATH=tests)

prints `{"port": N}` and serves until it is ended; the folder holds everything, so it survives a
restart and `kill -9`. What it does not know it refuses with 501: no test can pass by being
answered at random. Unlike the real one it has no cluster, no optimizer, no strict mode and no
gRPC, and a write must ask to be waited for.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from servers.qdrant_shard import Collection, Json, Refusal, unknown

VERSION = "1.19.0"
RUN: set[str] = set()  # the ways to an index that tests have gone, for `summary_lines`


def summary_lines() -> list[str]:
    """One line for the end of a test run: which servers the index was tested against."""
    url = os.environ.get("STRATA_TEST_QDRANT_URL")
    server = f"server {url}" if url and "qdrant-server" in RUN else "server: NOT TESTED"
    why = "" if url else " (STRATA_TEST_QDRANT_URL is not set)"
    names = {"qdrant-rest": "test server over Edge", "qdrant-local": "local mode"}
    done = [f"{text}{'' if name in RUN else ': not run'}" for name, text in names.items()]
    return [f"Qdrant: {'; '.join(done)}; {server}{why}"] if RUN else []


POINTS: dict[tuple[str, str], Callable[[Collection, Json], Any]] = {
    ("GET", ""): lambda collection, _: collection.info(),
    ("PATCH", ""): Collection.update,
    ("PUT", "/index"): Collection.create_index,
    ("PUT", "/points"): Collection.upsert,
    ("PUT", "/points/vectors"): Collection.update_vectors,
    ("POST", "/points"): Collection.retrieve,
    ("POST", "/points/delete"): Collection.delete,
    ("POST", "/points/vectors/delete"): Collection.delete_vectors,
    ("POST", "/points/payload/delete"): Collection.delete_payload,
    ("POST", "/points/scroll"): Collection.scroll,
    ("POST", "/points/count"): Collection.count,
    ("POST", "/points/query"): Collection.query,
    ("POST", "/points/query/batch"): Collection.query_batch,
    ("POST", "/facet"): Collection.facet,
}
WAITED = re.compile(r"PUT /vectors/.+|PUT /(index|points(/vectors)?)|POST /points/.*delete")
PATH = re.compile(r"/collections/(?P<name>[\w-]+)(?P<rest>/.*)?")


class QdrantServer(ThreadingHTTPServer):
    """Serves the folder from `start` to `stop`; `port` is where."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, *, port: int = 0, api_key: str | None = None) -> None:
        self.folder = folder
        self.api_key = api_key
        self.lock = threading.Lock()
        self.requests: list[str] = []  # "METHOD /path", as they came
        folder.mkdir(parents=True, exist_ok=True)
        found: Iterable[Path] = sorted(folder.glob("*/collection.json"))
        self.collections = {path.parent.name: Collection(path.parent) for path in found}
        super().__init__(("127.0.0.1", port), Handler)
        self.port: int = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> QdrantServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self.lock:
            for collection in self.collections.values():
                collection.shard.close()
            self.collections.clear()

    __enter__ = start

    def __exit__(self, *error: object) -> None:
        self.stop()

    def answer(self, method: str, path: str, query: Json, body: Json) -> Any:
        if (method, path) == ("GET", "/"):
            return None
        parts = PATH.fullmatch(path)
        if parts is None:
            raise unknown(f"{method} {path}")
        name, rest = parts["name"], parts["rest"] or ""
        if (method, rest) == ("GET", "/exists"):
            return {"exists": name in self.collections}
        if (method, rest) == ("PUT", ""):
            if name in self.collections:
                raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
            self.collections[name] = Collection.create(self.folder / name, body)
            return True
        collection = self.collections.get(name)
        if collection is None:
            raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
        if (method, rest) == ("DELETE", ""):
            self.collections.pop(name).remove()
            return True
        if WAITED.fullmatch(f"{method} {rest}") and query.get("wait") != ["true"]:
            raise unknown("writes that nobody waits for")
        named = rest.removeprefix("/vectors/")
        if named != rest and method == "PUT":
            return collection.create_vector(named, body)
        if (method, rest) not in POINTS:
            raise unknown(f"{method} {path}")
        return POINTS[method, rest](collection, body)


class Handler(BaseHTTPRequestHandler):
    server: QdrantServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer(self) -> None:
        path = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        key = self.server.api_key
        try:
            if key and not hmac.compare_digest(self.headers.get("api-key", ""), key):
                raise Refusal(401, "Must provide an API key or an Authorization bearer token")
            with self.server.lock:
                place = unquote(path.path)
                self.server.requests.append(f"{self.command} {place}")
                result = self.server.answer(
                    self.command, place, parse_qs(path.query), json.loads(body or b"{}")
                )
            answer = {"result": result, "status": "ok", "time": 0.0}
            if path.path == "/":
                answer = {"title": "qdrant - vector search engine", "version": VERSION}
            self._send(200, answer)
        except Refusal as error:
            self._send(error.status, {"status": {"error": str(error)}, "time": 0.0})
        except Exception as error:  # Edge raises bare Exception; KeyError: a field is missing
            self._send(400, {"status": {"error": f"Wrong input: {error!r}"}, "time": 0.0})

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _send(self, status: int, answer: Json) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: standard output says the port and no more."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--api-key")
    args = parser.parse_args()
    server = QdrantServer(args.folder, port=args.port, api_key=args.api_key)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(json.dumps({"port": server.port}), flush=True)
    server.serve_forever(0.05)
    server.server_close()
    for collection in server.collections.values():
        collection.shard.close()


if __name__ == "__main__":
    main()
