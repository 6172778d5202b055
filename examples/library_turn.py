"""One question and its streamed answer, with the memory inside your own program.

    python examples/library_turn.py

The model here is a fake one that needs no key; use any LangChain chat model in its place, for
example `ChatOpenAI(model="gpt-4.1-mini")`.
"""

import asyncio
import tempfile

from memory import MemoryConfig, Strata, User, open_memory
from memory.config import IndexConfig, StoreConfig
from memory.testing import FakeChatModel

MODEL = FakeChatModel(answers=["A fine name.", "Biscuit, as you said on Monday."])


async def say(strata: Strata, user: User, session_id: str, question: str) -> str:
    """The answer. Whatever happens in the block, the turn ends: as done, or as failed."""
    async with strata.turn(user, session_id, question) as turn:  # the question is durable now
        context = await turn.context()
        messages = [(message.role, message.content) for message in context.messages]
        answer = ""
        async for piece in MODEL.astream(messages):
            answer += piece.text
            print(piece.text, end="", flush=True)
        print()
        await turn.finish(answer)  # and so is the answer
    receipt = context.receipt
    print(f"  [{receipt.used_tokens} tokens, {len(receipt.layers.recall.items)} recalled]")
    return answer


async def main(folder: str) -> None:
    config = MemoryConfig(
        store=StoreConfig(url=f"sqlite:///{folder}/strata.db"),
        index=IndexConfig(url=f"edge:///{folder}/index"),
    )
    anna = User("acme", "anna")
    async with open_memory(config) as strata:
        await say(strata, anna, "monday", "My dog is called Biscuit.")
        await strata.caught_up()  # only so that this short program recalls it at once
        await say(strata, anna, "friday", "What is my dog called?")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(temporary))
