"""Talk to Strata over HTTP so that a broken network loses nothing.

    python examples/http_client.py "My dog is called Biscuit." --session a

Needs a running service (`make serve`) and httpx. The two things that matter:

- an Idempotency-Key for each question: however often it is sent, it is one turn;
- Last-Event-ID: a stream that broke is read on where it broke, from any worker.
"""

import argparse
import json
import time
import uuid
from collections.abc import Iterator

import httpx

ATTEMPTS = 5


def ask(client: httpx.Client, session: str, message: str) -> Iterator[tuple[str, dict]]:
    """The events of a turn, each once, whatever the network does in between."""
    key = str(uuid.uuid4())
    turn_id = last_event_id = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.2 * 2**attempt)
        try:
            if turn_id is None:  # not accepted yet, as far as we know: (re)send the question
                request = client.build_request(
                    "POST",
                    f"/v1/sessions/{session}/turns",
                    json={"message": message, "stream": True},
                    headers={"Idempotency-Key": key},
                )
            else:  # accepted: only read on
                request = client.build_request(
                    "GET",
                    f"/v1/turns/{turn_id}/events",
                    headers={"Last-Event-ID": last_event_id},
                )
            response = client.send(request, stream=True)
            try:
                if response.status_code in (429, 503):  # nothing was stored: come back later
                    time.sleep(float(response.headers.get("Retry-After", 1)))
                    continue
                if response.status_code == 409 and turn_id is None:
                    problem = json.loads(response.read())
                    if problem["code"] == "turn_running":  # our first try did arrive
                        turn_id, last_event_id = problem["turn_id"], ""
                        continue
                response.raise_for_status()
                for name, id_, data in events(response):
                    last_event_id = id_
                    turn_id = data.get("turn_id", turn_id)
                    yield name, data
                    if name in ("done", "error"):
                        return
            finally:
                response.close()
        except httpx.TransportError:
            continue
    raise ConnectionError(f"gave up after {ATTEMPTS} attempts")


def events(response: httpx.Response) -> Iterator[tuple[str, str, dict]]:
    """Server-sent events as (name, id, data); comments keep the connection open and are skipped."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if fields:
                yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("message")
    parser.add_argument("--session", default="example")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="for a service with auth.mode = keys")
    given = parser.parse_args()
    headers = {"Authorization": f"Bearer {given.key}"} if given.key else {}
    with httpx.Client(base_url=given.url, headers=headers, timeout=60) as client:
        for name, data in ask(client, given.session, given.message):
            if name == "context":
                recalled = len(data["layers"]["recall"]["items"])
                print(f"[{data['used_tokens']} tokens sent, {recalled} messages recalled]")
            elif name == "token":
                print(data["text"], end="", flush=True)
            elif name == "error":
                print(f"\n{data['code']}: {data['message']}")
            elif name == "done":
                print()


if __name__ == "__main__":
    main()
