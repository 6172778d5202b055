"""R12: a store that cannot write is 503 before `accepted`, `not_persisted` after, never `done`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from waiting import eventually

from system.conftest import BY_WORDS
from system.process import Model, environment, serving, strata
from system.streams import answer, ask, asking, history, text_of


async def test_a_full_disk_during_a_turn_is_told_and_never_done(model: Model, folder: Path) -> None:
    """R12: files that may not grow stand for a full disk."""
    with serving(
        folder, fake=model, embedding=BY_WORDS,
        session={"partial_flush": "100ms"}, projector={"interval": "100ms"},
    ) as service:  # fmt: skip
        async with service.client() as client:
            await answer(client, "s", "everything is fine")
            model.forget()
            model.mode("slow", delay=0.05, text="one two three four five six seven eight")
            found = []
            async with asking(client, "s", "count slowly") as events:
                async for event in events:
                    found.append(event)
                    if len(text_of(found).split()) == 3:
                        service.limit_files(1)
            assert [e.name for e in found if e.name in ("done", "error")] == ["error"]
            assert found[-1].data["code"] == "not_persisted"
            assert found[-1].data["retryable"] is True
            assert text_of(found) == "one two three four five six seven eight"
            [told] = [r for r in service.child.lines() if r["event"] == "turn.not_persisted"]
            assert told["detail"].startswith("SQLite: ")

            # Nothing new is taken, no model is called; live is green.
            model.forget()
            for stream in (True, False):
                response = await client.post(
                    "/v1/sessions/s/turns", json={"message": "and now?", "stream": stream}
                )
                assert response.status_code == 503, response.text
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["code"] == "store_unavailable"
                assert int(response.headers["retry-after"]) >= 1
            recorded = await client.post(
                "/v1/sessions/s/messages", json={"messages": [{"role": "user", "content": "x"}]}
            )
            assert recorded.status_code == 503
            assert model.requests() == []
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert ready.status_code == 503, ready.text
            assert ready.json()["store"]["status"] == "down"
            # What is stored can be read, and a stateless call needs no store.
            assert (await history(client, "s"))[0]["content"] == "everything is fine"
            assert (await ask(client, "s", "hello", memory=False))[-1].name == "done"

            # With room again everything goes on, and nothing is left running.
            service.limit_files(None)
            assert (await client.get("/health/ready")).status_code == 200
            again = await answer(client, "s", "are you back?")
            assert again["status"] == "done"
            found_now = await history(client, "s")
            assert [m["content"] for m in found_now if m["role"] == "user"] == [
                "everything is fine",
                "count slowly",
                "are you back?",
            ]
            assert found_now[3]["status"] != "running"
            assert "one two three four five six seven eight".startswith(found_now[3]["content"])
            assert [m["seq"] for m in found_now] == list(range(1, 7))

            async def caught_up() -> bool:
                found = await client.get("/v1/memories", params={"q": "are you back?"})
                return 5 in [m["seq"] for m in found.json()["memories"]]

            await eventually(caught_up)  # R11: after recovery every message is indexed


async def test_the_turn_that_was_not_persisted_is_interrupted_after_a_restart(
    model: Model, folder: Path
) -> None:
    with serving(
        folder, fake=model, embedding=BY_WORDS, session={"partial_flush": "50ms"}
    ) as service:
        async with service.client() as client:
            await answer(client, "s", "everything is fine")
            model.mode("slow", delay=0.05, text="one two three four five six")
            found = []
            async with asking(client, "s", "count slowly") as events:
                async for event in events:
                    found.append(event)
                    if len(text_of(found).split()) == 3:
                        service.limit_files(1)
            assert found[-1].data["code"] == "not_persisted"
            service.kill()
        service.start()
        model.forget()
        async with service.client() as client:
            turn = (await client.get(f"/v1/turns/{found[0].data['turn_id']}")).json()
            assert turn["status"] == "interrupted"
            assert text_of(found).startswith(turn["assistant"]["content"])
            await answer(client, "s", "are you back?")


async def test_a_store_that_cannot_be_opened_refuses_the_start(folder: Path) -> None:
    (folder / ".strata").mkdir()
    (folder / ".strata" / "strata.db").write_bytes(b"this is no database" * 1000)
    for command in (("serve", "--port", "0"), ("check",)):
        done = strata(*command, folder=folder, embedding=BY_WORDS)
        assert done.returncode not in (0, None)
        assert "SQLite" in done.stderr
        assert "Traceback" not in done.stderr


async def test_a_second_service_on_the_same_folder_is_refused(model: Model, folder: Path) -> None:
    """DESIGN §2: an exclusive lock on the data folder."""
    with serving(folder, fake=model, embedding=BY_WORDS) as service:
        done = strata("serve", "--port", "0", folder=folder, embedding=BY_WORDS)
        assert done.returncode != 0
        assert "in use by another process" in done.stderr
        async with service.client() as client:
            assert (await client.get("/health/ready")).status_code == 200


CLOSED_UNDER_A_QUERY = """
import asyncio, pathlib
from memory.stores.sqlite.database import Database

SLOW = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
    " SELECT count(*) FROM n"
)

async def main():
    for number in range(5):
        path = pathlib.Path(f"{number}/strata.db")
        database = Database(path, prepare=lambda db: None, timeout_seconds=1)
        await database.open()
        reading = asyncio.create_task(database.rows(SLOW, ()))
        await asyncio.sleep(0.01 * number)
        reading.cancel()
        await database.close()
    print("closed")

asyncio.run(main())
"""


def test_a_store_that_is_closed_under_a_query_does_not_take_the_process_with_it(
    folder: Path,
) -> None:
    """A cancelled read still runs on its thread: SQLite then crashed the whole process."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_UNDER_A_QUERY], cwd=folder, env=environment(),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
