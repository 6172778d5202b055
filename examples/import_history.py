"""Bring a history from elsewhere: any export becomes messages with ids, recorded without a model.

    python examples/import_history.py

Repeating it is harmless: a message whose id the session has is not stored again. For large files
there is `strata import FILE`, which reads one JSON line for each message.
"""

import asyncio
import tempfile
from datetime import datetime
from itertools import groupby

from memory import Incoming, MemoryConfig, Strata, User, open_memory
from memory.config import IndexConfig, StoreConfig

# What another service exported; yours will look otherwise.
EXPORTED = [
    {"chat": "c1", "id": "1", "from": "human", "at": "2025-05-08T09:00:00Z",
     "text": "I am allergic to peanuts."},
    {"chat": "c1", "id": "2", "from": "bot", "at": "2025-05-08T09:00:05Z",
     "text": "Noted: no peanuts."},
    {"chat": "c2", "id": "1", "from": "human", "at": "2025-06-01T18:30:00Z",
     "text": "Where shall we eat tonight?"},
]  # fmt: skip
ROLES = {"human": "user", "bot": "assistant"}


async def bring(strata: Strata, user: User) -> None:
    for session_id, rows in groupby(EXPORTED, key=lambda row: row["chat"]):
        messages = [
            Incoming(
                role=ROLES[row["from"]],
                content=row["text"],
                created_at=datetime.fromisoformat(row["at"]),
                id=row["id"],
            )
            for row in rows
        ]
        done = await strata.record(user, session_id, messages)
        print(f"{session_id}: {done.accepted} new, {done.duplicates} known")


async def main(folder: str) -> None:
    config = MemoryConfig(
        store=StoreConfig(url=f"sqlite:///{folder}/strata.db"),
        index=IndexConfig(url=f"edge:///{folder}/index"),
    )
    anna = User("acme", "anna")
    async with open_memory(config) as strata:
        await bring(strata, anna)
        await bring(strata, anna)
        await strata.caught_up()
        context = await strata.context(anna, "new", "Can I eat this satay sauce?", budget=1000)
        print(context.messages[-1].content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(temporary))
