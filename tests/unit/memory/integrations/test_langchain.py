"""Small LangChain applications over Strata, as people build them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core._api import LangChainDeprecationWarning
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models
from servers.qdrant import QdrantServer

from memory import Incoming, Strata, User
from memory.indexes.base import dense_name
from memory.integrations.langchain import StrataChatMessageHistory, StrataRetriever
from unit.builders import LateModel, LetterEmbeddings, assembled, opened

ANNA, OSKAR = User("acme", "anna"), User("acme", "oskar")


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[str]:
    """The address of a Qdrant: the real one, if there is one."""
    if url := os.environ.get("STRATA_TEST_QDRANT_URL"):
        yield url
        return
    with QdrantServer(tmp_path / "qdrant") as server:
        yield server.url


async def tell(strata: Strata, user: User, session: str, *texts: str, role: str = "user") -> None:
    messages = [Incoming(role=role, content=text) for text in texts]
    await strata.memory.record(user, session, messages)
    await strata.projector.caught_up()


def shown(documents: list[Document]) -> str:
    return "\n".join(f"- {document.page_content}" for document in documents)


async def test_a_chain_answers_from_what_the_user_said_in_another_session(strata: Strata) -> None:
    await tell(strata, ANNA, "monday", "My bicycle has a blue frame.")
    await tell(strata, ANNA, "tuesday", "I like green tea.")
    await tell(strata, OSKAR, "monday", "My bicycle has a red frame.")
    retriever = StrataRetriever(strata=strata, user=ANNA, k=1)
    prompts: list[str] = []

    def look(prompt: Any) -> Any:
        prompts.append(prompt.to_string())
        return prompt

    chain = (
        {"context": retriever | shown, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("Known:\n{context}\n\nQuestion: {question}")
        | RunnableLambda(look)
        | FakeListChatModel(responses=["Blue."])
        | StrOutputParser()
    )
    assert await chain.ainvoke("Which colour has my bicycle?") == "Blue."
    assert prompts == [
        "Human: Known:\n- My bicycle has a blue frame.\n\nQuestion: Which colour has my bicycle?"
    ]


async def test_documents_say_where_they_come_from(strata: Strata) -> None:
    await strata.memory.record(
        ANNA, "s1", [Incoming(role="user", content="Green tea, please.", speaker="Anna")]
    )
    await tell(strata, ANNA, "s2", "Here is your green tea.", role="assistant")
    documents = await StrataRetriever(strata=strata, user=ANNA).ainvoke("green tea")
    assert len(documents) == 2
    first = next(d for d in documents if d.metadata["session_id"] == "s1")
    assert first.page_content == "Green tea, please."
    assert first.metadata["role"] == "user"
    assert first.metadata["speaker"] == "Anna"
    assert set(first.metadata) >= {"message_id", "created_at", "score"}
    narrow = StrataRetriever(strata=strata, user=ANNA, session_id="s2")
    (only,) = await narrow.ainvoke("green tea")
    assert only.metadata["session_id"] == "s2"
    mine = StrataRetriever(strata=strata, user=ANNA, role="assistant")
    assert [d.metadata["role"] for d in await mine.ainvoke("green tea")] == ["assistant"]
    assert await StrataRetriever(strata=strata, user=OSKAR).ainvoke("green tea") == []


async def test_the_synchronous_forms_work_from_another_thread_and_say_so_elsewhere(
    strata: Strata,
) -> None:
    await tell(strata, ANNA, "s1", "I like green tea.")
    retriever = StrataRetriever(strata=strata, user=ANNA)
    (found,) = await asyncio.to_thread(retriever.invoke, "tea")
    assert found.page_content == "I like green tea."
    history = StrataChatMessageHistory(strata, ANNA, "s1")
    await asyncio.to_thread(history.add_messages, [AIMessage("Noted.")])
    messages = await asyncio.to_thread(lambda: history.messages)
    assert [m.content for m in messages] == ["I like green tea.", "Noted."]
    await asyncio.to_thread(history.clear)
    assert await history.aget_messages() == []
    with pytest.raises(RuntimeError, match="ainvoke"):
        retriever.invoke("tea")
    made_there = await asyncio.to_thread(StrataRetriever, strata=strata, user=ANNA)
    with pytest.raises(RuntimeError, match="event loop"):
        await asyncio.to_thread(made_there.invoke, "tea")
    assert len(await made_there.ainvoke("tea")) == 0, "the session is erased"


def remembering(strata: Strata, seen: list[list[str]], *answers: str) -> Any:
    """A chatbot that is given its history by LangChain."""

    def look(prompt: Any) -> Any:
        seen.append([str(message.content) for message in prompt.to_messages()])
        return prompt

    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be kind."), MessagesPlaceholder("history"), ("human", "{question}")]
    )
    chain = prompt | RunnableLambda(look) | FakeListChatModel(responses=list(answers))
    with pytest.warns(LangChainDeprecationWarning, match="RunnableWithMessageHistory"):
        return RunnableWithMessageHistory(
            chain,
            lambda session_id: StrataChatMessageHistory(strata, ANNA, session_id),
            input_messages_key="question",
            history_messages_key="history",
        )


async def test_a_conversation_goes_on_over_two_turns_and_a_restart(tmp_path: Path) -> None:
    session = {"configurable": {"session_id": "chat"}}
    seen: list[list[str]] = []
    async with opened(tmp_path) as strata:
        bot = remembering(strata, seen, "Hello Anna.", "You are Anna.")
        await bot.ainvoke({"question": "I am Anna."}, session)
        await bot.ainvoke({"question": "Who am I?"}, session)
    async with opened(tmp_path) as strata:
        bot = remembering(strata, seen, "Still Anna.")
        answer = await bot.ainvoke({"question": "And now?"}, session)
        assert answer.content == "Still Anna."
        page, _ = await strata.history.messages(ANNA, "chat", before=None, limit=99)
        assert [(m.role, m.content) for m in page] == [
            ("user", "I am Anna."), ("assistant", "Hello Anna."),
            ("user", "Who am I?"), ("assistant", "You are Anna."),
            ("user", "And now?"), ("assistant", "Still Anna."),
        ]  # fmt: skip
    system, turn1 = ["Be kind."], ["I am Anna.", "Hello Anna."]
    turn2 = ["Who am I?", "You are Anna."]
    assert seen == [
        [*system, "I am Anna."],
        [*system, *turn1, "Who am I?"],
        [*system, *turn1, *turn2, "And now?"],
    ]


async def test_a_history_keeps_what_was_said_and_each_message_once(strata: Strata) -> None:
    history = StrataChatMessageHistory(strata, ANNA, "chat", limit=3)
    assert await history.aget_messages() == []
    await history.aclear()
    said: list[BaseMessage] = [
        SystemMessage("Be kind."),
        HumanMessage("Weather?", name="Anna"),
        AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "1"}]),
        ToolMessage("sunny", tool_call_id="1"),
        AIMessage([{"type": "text", "text": "Sunny."}], id="answer-1"),
    ]
    await history.aadd_messages(said)
    await history.aadd_messages([said[-1], HumanMessage("Thanks!")])
    got = await history.aget_messages()
    assert [(m.type, m.content, m.name) for m in got] == [
        ("human", "Weather?", "Anna"), ("ai", "Sunny.", None), ("human", "Thanks!", None),
    ]  # fmt: skip
    await history.aadd_messages([AIMessage("Bye.")])
    assert [m.content for m in await history.aget_messages()] == ["Sunny.", "Thanks!", "Bye."]
    other = StrataChatMessageHistory(strata, OSKAR, "chat")
    assert await other.aget_messages() == []
    await history.aclear()
    assert await history.aget_messages() == []


async def test_langchain_opens_the_collection_and_finds_one_users_texts(
    tmp_path: Path, qdrant: str
) -> None:
    model = LateModel()
    name = f"test-{uuid4().hex}"
    index = {"url": qdrant, "collection": name, "payload_text": True, "timeout": 10}
    async with assembled(tmp_path, model=model, index=index) as strata:
        model.release.set()
        await strata.caught_up()
        await tell(strata, ANNA, "s1", "green tea", "black coffee")
        await tell(strata, OSKAR, "s1", "green tea with milk")
        vector = dense_name(model.identity, model.dimensions)

        def search() -> list[Document]:
            client = QdrantClient(qdrant, check_compatibility=False)
            vectors = QdrantVectorStore(
                client, name, embedding=LetterEmbeddings(), vector_name=vector
            )
            mine = models.FieldCondition(
                key="metadata.user", match=models.MatchValue(value=ANNA.key)
            )
            found = vectors.similarity_search(
                "user: green tea", k=9, filter=models.Filter(must=[mine])
            )
            client.close()
            return found

        documents = await asyncio.to_thread(search)
        assert [d.page_content for d in documents] == ["green tea", "black coffee"]
        assert documents[0].metadata["user"] == ANNA.key
        assert documents[0].metadata["session_id"] == "s1"
        assert documents[0].metadata["role"] == "user"
        assert {"message_id", "created_at"} <= set(documents[0].metadata)
        await strata.history.delete_session(ANNA, "s1")
        assert await asyncio.to_thread(search) == []
    with closing(QdrantClient(qdrant, check_compatibility=False)) as client:
        client.delete_collection(name)
