"""The library as its users meet it: its names, one turn as a block, one context in a line."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage
from waiting import eventually

import memory
from memory import BudgetConfig, Incoming, ModelSummarizer, Strata, User
from memory.errors import BudgetExceeded, TurnEnded
from memory.indexes.base import Hits
from memory.testing import FakeChatModel
from unit.builders import IndexAround, another_memory, counter, opened

ANNA = User("acme", "anna")


def test_the_public_names_are_these() -> None:
    assert sorted(memory.__all__) == [
        "BudgetConfig", "ChatMessage", "Context", "FoundMemories", "History", "Incoming",
        "MemoryConfig", "Message", "ModelSummarizer", "OpenTurn", "Receipt", "Recollection",
        "Recorded", "Session", "Strata", "StrataError", "Summarizer", "Turn", "TurnError",
        "TurnRequest", "User", "errors", "open_memory",
    ]  # fmt: skip
    for name in memory.__all__:
        found = getattr(memory, name)
        assert inspect.getdoc(found) or inspect.ismodule(found), f"{name} explains itself"


def test_what_a_turn_and_its_errors_can_do_is_public() -> None:
    def names(of: object) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    assert names(memory.OpenTurn) >= {"context", "flush", "finish", "abandon", "release_context"}
    assert names(Strata) >= {"turn", "context", "record", "caught_up"}
    assert issubclass(TurnEnded, memory.StrataError)


async def test_a_turn_is_a_block_that_stores_the_answer_and_its_receipt(strata: Strata) -> None:
    async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
        context = await turn.context()
        assert context.messages[-1].content == "I moved to Lyon."
        stored = await turn.finish("Lyon, lovely!")
    whole = await strata.history.turn(ANNA, stored.id)
    assert whole.status == "done"
    assert whole.receipt == context.receipt
    assert whole.assistant is not None
    assert whole.assistant.content == "Lyon, lovely!"


async def test_an_exception_ends_the_turn_as_failed_and_frees_the_session(strata: Strata) -> None:
    ids = []

    async def break_off() -> None:
        async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
            ids.append(turn.turn.id)
            await turn.context()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    failed = await strata.history.turn(ANNA, ids[0])
    assert failed.status == "failed"
    assert failed.receipt is not None
    assert failed.error is not None
    assert failed.error.retryable
    async with asyncio.timeout(5), strata.turn(ANNA, "s1", "Are you there?") as following:
        assert (await following.context()).messages[1].content.startswith("I moved to Lyon.")
        await following.finish("Yes.")


async def test_leaving_without_an_answer_keeps_what_was_flushed(strata: Strata) -> None:
    async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
        await turn.flush("Lyon, lov")
    failed = await strata.history.turn(ANNA, turn.turn.id)
    assert failed.assistant is not None
    assert (failed.status, failed.assistant.status) == ("failed", "partial")
    assert failed.assistant.content == "Lyon, lov"


async def test_a_cancelled_block_frees_its_session_too(strata: Strata) -> None:
    began = asyncio.Event()

    async def turn_for_ever() -> None:
        async with strata.turn(ANNA, "s1", "Never answered"):
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(turn_for_ever())
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # again, while the turn is being ended
    with pytest.raises(asyncio.CancelledError):
        await task

    async def is_failed() -> bool:
        page, _ = await strata.history.messages(ANNA, "s1", before=None, limit=9)
        return page[-1].status == "failed"

    await eventually(is_failed)


async def test_a_closing_memory_waits_for_turns_that_are_being_ended(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def turn_for_ever(strata: Strata) -> None:
        async with strata.turn(ANNA, "s1", "Never answered"):
            begun.set()
            await asyncio.Event().wait()

    async with opened(tmp_path) as strata:
        task = asyncio.create_task(turn_for_ever(strata))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
    async with opened(tmp_path) as strata:
        page, _ = await strata.history.messages(ANNA, "s1", before=None, limit=9)
        assert page[-1].status in ("failed", "interrupted")


async def test_an_ended_turn_says_that_it_has_ended(strata: Strata) -> None:
    async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
        await turn.finish("Lyon, lovely!")
        for late in (turn.context(), turn.flush("x"), turn.finish("x")):
            with pytest.raises(TurnEnded, match="begin another"):
                await late
        turn.abandon()


async def test_a_released_context_keeps_its_receipt(strata: Strata) -> None:
    async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
        context = await turn.context()
        turn.release_context()
        with pytest.raises(TurnEnded):
            await turn.context()
        assert (await turn.finish("Lovely.")).receipt == context.receipt


async def test_a_context_is_one_line(strata: Strata) -> None:
    await strata.record(
        ANNA,
        "s1",
        [Incoming(role="user", content=f"My dog is called Bruno {n}.") for n in range(9)],
    )
    await strata.caught_up()
    whole = await strata.context(ANNA, "s2", "What is my dog called?")
    assert "Bruno" in whole.recall_block
    small = await strata.context(ANNA, "s2", "What is my dog called?", budget=100)
    assert small.receipt.used_tokens <= small.receipt.budget_tokens == 100
    by_layer = BudgetConfig(recall_tokens=0)
    none = await strata.context(ANNA, "s2", "What is my dog called?", budget=by_layer)
    assert none.recall_block == ""
    with pytest.raises(BudgetExceeded):
        await strata.context(ANNA, "s2", "What is my dog called?", budget=1)


async def test_a_key_names_one_question(strata: Strata) -> None:
    async with strata.turn(ANNA, "s1", "My dog is called Bruno.", idempotency_key="k") as turn:
        await turn.finish("Nice.")
    with pytest.raises(memory.errors.Answered) as caught:
        async with strata.turn(ANNA, "s1", "My dog is called Bruno.", idempotency_key="k"):
            raise AssertionError("it is answered already")
    assert caught.value.turn.id == turn.turn.id
    with pytest.raises(memory.errors.KeyReused):
        async with strata.turn(ANNA, "s1", "Another question", idempotency_key="k"):
            raise AssertionError("the key is that of another question")


async def test_a_retry_whose_answer_is_known_searches_nothing(strata: Strata) -> None:
    searches = 0

    class Counted(IndexAround):
        async def search(self, **query: object) -> Hits:
            nonlocal searches
            searches += 1
            return await self.inner.search(**query)

    assert strata.index is not None
    counted = another_memory(strata, index=Counted(strata.index))
    request = memory.TurnRequest(
        user=ANNA, session_id="s1", question="My dog is called Bruno.", idempotency_key="k"
    )
    async with await counted.begin(request) as turn:
        await turn.context()
        await turn.finish("Nice.")
    assert searches == 1
    for _ in range(3):
        with pytest.raises(memory.errors.Answered):
            await counted.begin(request)
    await asyncio.sleep(0)
    assert searches == 1


async def test_the_fake_model_answers_as_scripted_and_keeps_its_calls() -> None:
    model = FakeChatModel(
        answers=["One two.", lambda messages: str(messages[-1].content).upper(), ValueError("no")]
    )
    assert (await model.ainvoke("hello")).text == "One two."
    pieces = [chunk.text async for chunk in model.astream([HumanMessage("hello")])]
    assert "".join(pieces) == "HELLO"
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await model.ainvoke("x")
    assert [call[-1].content for call in model.calls] == ["hello", "hello", "x", "x"]


async def test_a_turn_is_finished_with_what_a_chat_model_gives(strata: Strata) -> None:
    model = FakeChatModel(answers=["Lyon, lovely!"])
    async with strata.turn(ANNA, "s1", "I moved to Lyon.") as turn:
        context = await turn.context()
        answer = await model.ainvoke([(m.role, m.content) for m in context.messages])
        await turn.flush(answer.text)
        assert (await turn.finish(answer.text)).assistant is not None
    assert [message.type for message in model.calls[0]] == ["system", "human"]


async def test_any_chat_model_can_summarise(tmp_path: Path) -> None:
    model = FakeChatModel(answers=["Anna has 3 cats, moved to Lyon on 3 May 2023 and met Bruno."])
    writer = ModelSummarizer(model, counter=counter(), context_tokens=4000)
    small = {"context_tokens": 900, "window_tokens": 100, "summary_tokens": 120,
             "recall_tokens": 0, "facts_tokens": 0}  # fmt: skip
    async with opened(tmp_path, summarizer=writer, budget=small) as strata:
        for n in range(12):
            async with strata.turn(ANNA, "s1", f"And what about this, number {n} of many?") as turn:
                await turn.finish("Indeed so.")
        await strata.caught_up()
        session = await strata.history.session(ANNA, "s1")
        assert "Anna has 3 cats" in session.summary.text
        assert not session.summary.degraded
        assert model.calls
