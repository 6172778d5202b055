"""Recall as a LangChain retriever: one more source of documents for a chain that you have.

python examples/langchain_retriever.py
"""

import asyncio
import tempfile

from langchain_core.runnables import RunnableLambda

from memory import Incoming, MemoryConfig, User, open_memory
from memory.config import IndexConfig, StoreConfig
from memory.integrations.langchain import StrataRetriever


async def main(folder: str) -> None:
    config = MemoryConfig(
        store=StoreConfig(url=f"sqlite:///{folder}/strata.db"),
        index=IndexConfig(url=f"edge:///{folder}/index"),
    )
    anna = User("acme", "anna")
    async with open_memory(config) as strata:
        said = ["My bicycle is green.", "I moved to Lyon.", "My dog is called Biscuit."]
        await strata.record(anna, "s1", [Incoming(role="user", content=text) for text in said])
        await strata.caught_up()

        retriever = StrataRetriever(strata=strata, user=anna, k=2)
        chain = retriever | RunnableLambda(lambda found: [d.page_content for d in found])
        print(await chain.ainvoke("Which colour has my bicycle?"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(temporary))
