"""A memory inside a Litestar application that you have already.

    uvicorn examples.litestar_app:app --port 8001
    curl -N localhost:8001/chat/s1 -H 'x-user: anna' -d 'My dog is called Biscuit.'

One memory for the life of the process: opened in the lifespan, closed by it. (In FastAPI it is the
same `async with` in the lifespan function, with `app.state`.)
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, Request, post
from litestar.response import Stream

from memory import MemoryConfig, User, open_memory
from memory.config import IndexConfig, StoreConfig
from memory.testing import FakeChatModel

FOLDER = os.environ.get("EXAMPLE_DATA", ".strata-example")
MODEL = FakeChatModel(answers=["Any LangChain chat model goes here."])


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    config = MemoryConfig(
        store=StoreConfig(url=f"sqlite:///{FOLDER}/strata.db"),
        index=IndexConfig(url=f"edge:///{FOLDER}/index"),
    )
    async with open_memory(config) as strata:
        app.state.strata = strata
        yield


@post("/chat/{session_id:str}", status_code=200)
async def chat(request: Request, session_id: str) -> Stream:
    # Who speaks comes from your own login, never from the body; a header stands in for it here.
    user = User("acme", request.headers["x-user"])
    question = (await request.body()).decode()

    async def answer() -> AsyncIterator[str]:
        text = ""
        # If the client leaves, the block is left by an exception: the turn ends as failed and the
        # session is free again. (Strata's own service lets the answer go on instead.)
        async with request.app.state.strata.turn(user, session_id, question) as turn:
            context = await turn.context()
            messages = [(message.role, message.content) for message in context.messages]
            async for piece in MODEL.astream(messages):
                text += piece.text
                yield piece.text
            await turn.finish(text)

    return Stream(answer(), media_type="text/plain; charset=utf-8")


app = Litestar([chat], lifespan=[lifespan], openapi_config=None)
