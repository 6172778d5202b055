from __future__ import annotations

import random
import re
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.config import BudgetConfig
from memory.context.assembly import RULES, Material, assemble, check_question
from memory.errors import BudgetExceeded
from memory.models import Recalled, Recollection, Summary, Turn
from memory.recall.packing import quoted
from memory.receipt import Context, Layers
from memory.text import cut
from memory.tokens import EstimatedCounter, TokenCounter
from memory.window import EARLIER, shown
from unit.builders import NOON, count_messages, counter, dialogue, message, turn
from unit.texts import odd_text

CASES = 10_000


def budget(**tokens: int) -> BudgetConfig:
    values = {"context_tokens": 2000, "window_tokens": 800, "summary_tokens": 200,
              "recall_tokens": 400, "facts_tokens": 0}  # fmt: skip
    return BudgetConfig(**{**values, **tokens})


def material(question: str = "What is my dog called?", **more: object) -> Material:
    values: dict[str, object] = {
        "system": "", "summary": Summary(), "turns": (), "recalled": Recalled(),
    }  # fmt: skip
    return Material(question=question, **{**values, **more})  # type: ignore[arg-type]


def build(
    given_: Material, limits: BudgetConfig | None = None, counting: TokenCounter | None = None
) -> Context:
    return assemble(given_, budget=limits or budget(), counter=counting or counter())


def recollections(*texts: str, start: int = 1001) -> tuple[Recollection, ...]:
    return tuple(
        Recollection(
            message=message(text, seq=start + n, session="other", at=NOON - timedelta(days=n)),
            session_id="other",
            passage=0,
            score=float(-n),
            dense_rank=None,
            lexical_rank=n + 1,
        )
        for n, text in enumerate(texts)
    )


def random_turns(rng: random.Random, start: int) -> list[Turn]:
    turns: list[Turn] = []
    seq = start
    for _ in range(rng.choice((0, 1, 2, 3, 5, 8))):
        kind = rng.random()
        speaker = rng.choice((None, None, "Bruno", "</memory>"))
        if kind < 0.6:
            made = turn(odd_text(rng), odd_text(rng), seq=seq, speaker=speaker)
        elif kind < 0.75:
            made = turn(odd_text(rng), "", seq=seq, status="failed")
        elif kind < 0.9:
            made = turn(odd_text(rng), seq=seq, speaker=speaker)
        else:
            made = turn(None, odd_text(rng), seq=seq)
        turns.append(made)
        seq = made.last_seq + 1
    return turns


def random_material(rng: random.Random) -> Material:
    covered = rng.choice((0, 0, 7))
    summary = Summary()
    if covered or rng.random() < 0.2:
        text = "8 May 2024:\n" + odd_text(rng, most=8)
        summary = Summary(
            text=text, version=3, covers_through=covered, retired=2, tokens=counter().count(text)
        )
    turns = random_turns(rng, covered + 1)
    found: list[Recollection] = []
    for item in recollections(*(odd_text(rng, most=rng.choice((2, 9))) for _ in range(5))):
        found += [
            msgspec.structs.replace(item, passage=n)
            for n in range(len(cut(item.message.content)))
            if rng.random() < 0.6
        ]
    if turns and rng.random() < 0.3:  # something that stands in the window already
        inside = rng.choice([m for t in turns for m in shown(t)])
        found.insert(0, msgspec.structs.replace(recollections("x")[0], message=inside))
    marks = ()
    return Material(
        question=odd_text(rng),
        system=odd_text(rng) if rng.random() < 0.3 else "",
        summary=summary,
        turns=turns,
        recalled=Recalled(tuple(found), gone=rng.randint(0, 2)),
        previous_marks=marks,
    )


def random_budget(rng: random.Random) -> BudgetConfig:
    size = rng.choice((40, 90, 150, 300, 600, 1500))
    shares = [rng.random() for _ in range(4)]
    scale = size * rng.random() / sum(shares)
    window, summary, recall, facts = (
        0 if rng.random() < 0.1 else int(share * scale) for share in shares
    )
    return BudgetConfig(
        context_tokens=size + 60,
        window_tokens=window,
        summary_tokens=summary,
        recall_tokens=recall,
        facts_tokens=facts,
    )


def fenced(text: str, name: str) -> tuple[str, str]:
    """(what stands inside the fence called `name`, what stands outside)."""
    match = re.search(rf"<{name}>\n(.*)\n</{name}>", text, re.DOTALL)
    return (match[1], text[: match.start()] + text[match.end() :]) if match else ("", text)


def check(given_: Material, limits: BudgetConfig, counting: TokenCounter) -> None:
    """Everything that is promised of a context, whatever the inputs."""
    try:
        context = build(given_, limits, counting)
    except BudgetExceeded as error:
        alone = build(
            material(given_.question, system=given_.system),
            BudgetConfig(context_tokens=error.needed_tokens, window_tokens=0, summary_tokens=0,
                         recall_tokens=0, facts_tokens=0),
            counting,
        )  # fmt: skip
        needed = error.needed_tokens
        assert alone.receipt.used_tokens == needed > limits.context_tokens
        return
    receipt, layers, messages = context.receipt, context.receipt.layers, context.messages

    # The budget, by the real count of what is really sent.
    real = count_messages(counting, messages)
    assert real == receipt.used_tokens <= limits.context_tokens == receipt.budget_tokens
    parts = [getattr(layers, name).tokens for name in msgspec.structs.asdict(Layers())]
    assert sum(parts) == real
    assert all(part >= 0 for part in parts)
    assert layers.window.tokens <= limits.window_tokens
    assert layers.summary.tokens <= limits.summary_tokens
    assert layers.recall.tokens <= limits.recall_tokens

    # The shape: one system message, then strictly in turn, the question at the very end.
    assert messages[0].role == "system"
    roles = [m.role for m in messages[1:]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert messages[-1].content.endswith(given_.question)

    # Quoted text stands inside its fence, and nothing in it closes the fence.
    inside, outside = fenced(messages[0].content, "summary")
    assert outside.rstrip() == "\n\n".join(p for p in (RULES, given_.system) if p).rstrip()
    assert not re.search(r"<\s*/?\s*(memory|summary|facts)", inside, re.IGNORECASE)
    assert context.recall_block in messages[-1].content
    recalled = context.recall_block.removeprefix("<memory>").removesuffix("</memory>")
    assert len(recalled) == max(0, len(context.recall_block) - len("<memory></memory>"))
    assert not re.search(r"<\s*/?\s*(memory|summary|facts)", recalled, re.IGNORECASE)
    for item in layers.recall.items:
        found = {r.message.id: r.message for r in given_.recalled.items}[item.message_id]
        assert any(
            quoted(found.content[span.start : span.end].strip()) in context.recall_block
            for span in cut(found.content)
        )

    # The window: the newest whole turns after the summary, and nothing counted twice.
    after = [m for t in given_.turns for m in shown(t)]
    in_window = layers.window.messages
    dropped = {(d.layer, d.reason): d.count for d in receipt.dropped}
    room = min(
        limits.window_tokens,
        limits.context_tokens - real + layers.window.tokens + layers.recall.tokens,
    )
    assert in_window or not after or room < 20
    assert in_window + dropped.get(("window", "budget"), 0) == len(after)
    if ("window", "cut") not in dropped:
        recalled_ids = {item.message_id for item in layers.recall.items}
        assert not recalled_ids & {m.id for m in after[len(after) - in_window :]}
    if in_window and ("window", "cut") not in dropped:
        window = after[len(after) - in_window :]
        assert (layers.window.first_seq, layers.window.last_seq) == (window[0].seq, window[-1].seq)
        assert window[0] in [m for t in given_.turns for m in shown(t)[:1]]
        place, whole = 0, "\n\n".join(m.content for m in messages[1:])
        for m in window:
            text = f"{m.speaker}: {m.content}" if m.speaker else m.content
            place = whole.index(text, place) + len(text)


def test_ten_thousand_random_contexts_keep_every_promise(rng: random.Random) -> None:
    for case in range(CASES):
        given_, limits = random_material(rng), random_budget(rng)
        try:
            check(given_, limits, counter())
        except AssertionError:
            print(f"case {case}: {limits!r}\n{given_!r}")
            raise


@settings(max_examples=100)
@given(st.integers())
def test_the_promises_hold_by_an_estimate_too(seed: int) -> None:
    rng = random.Random(seed)
    given_ = random_material(rng)

    def estimated(t: Turn) -> Turn:
        changes = {
            name: msgspec.structs.replace(m, tokens=EstimatedCounter().count(m.content))
            for name, m in (("user", t.user), ("assistant", t.assistant))
            if m is not None
        }
        return msgspec.structs.replace(t, **changes)

    given_ = given_._replace(turns=[estimated(t) for t in given_.turns])
    check(given_, random_budget(rng), EstimatedCounter())


def test_the_newest_finished_turn_is_always_in_cut_visibly_if_need_be() -> None:
    turns = [turn("Tell me all about it", "It is long. " * 300)]
    context = build(material(turns=turns), budget(window_tokens=100))
    assert context.receipt.layers.window.messages == 2
    assert " […] " in context.messages[2].content
    assert ("window", "cut", 1) in [(d.layer, d.reason, d.count) for d in context.receipt.dropped]


@pytest.mark.parametrize("extra", range(8))
def test_a_recorded_answer_that_just_fits_still_finds_room_for_what_must_stand_before_it(
    extra: int,
) -> None:
    answer = "word " * 50
    room = counter().count(answer) + 4 + extra
    context = build(material(turns=[turn(None, answer)]), budget(window_tokens=room))
    assert context.receipt.layers.window.messages == 1
    assert context.messages[1].content == EARLIER


def test_claims_are_met_in_order_summary_window_recall() -> None:
    given_ = material(
        turns=dialogue([("hello " * 30, "hi " * 30)] * 6),
        summary=Summary(text="Anna likes tea. " * 30, version=1),
        recalled=Recalled(recollections(*["Bruno barks " * 10] * 9)),
    )
    free = budget(context_tokens=3000, window_tokens=2000, summary_tokens=300, recall_tokens=500)
    wide = build(given_, free).receipt
    tight = wide.used_tokens - wide.layers.recall.tokens - 50
    limits = [free.model_copy(update={"context_tokens": n}) for n in (tight, tight - 100)]
    first, second = (build(given_, limit).receipt.layers for limit in limits)
    assert first.summary == second.summary == wide.layers.summary
    assert max(first.recall.tokens, second.recall.tokens) < wide.layers.recall.tokens / 2
    assert second.window.tokens < first.window.tokens <= wide.layers.window.tokens


def test_an_empty_memory_sends_rules_system_and_question_alone() -> None:
    context = build(material("hello world", system="Be kind."))
    assert [m.content for m in context.messages] == [f"{RULES}\n\nBe kind.", "hello world"]
    assert context.receipt.layers.question.tokens == 2 + 4 + 3
    assert context.receipt.dropped == ()


def test_system_and_question_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        check_question("hello " * 100, "", budget(context_tokens=1400, window_tokens=0).model_copy(
            update={"context_tokens": 100}), counter())  # fmt: skip
    assert caught.value.budget_tokens == 100
    assert caught.value.needed_tokens > 100


def test_recall_stands_in_the_last_message_before_the_question() -> None:
    context = build(material(recalled=Recalled(recollections("My dog is called Bruno."))))
    assert context.messages[-1].content == (
        "<memory>\n8 May 2024:\nUser: My dog is called Bruno.\n</memory>\n\nWhat is my dog called?"
    )
    assert context.recall_block.startswith("<memory>")


def test_what_stands_in_the_window_is_not_recalled_again() -> None:
    turns = dialogue([("My dog is called Bruno.", "Nice.")])
    inside = msgspec.structs.replace(recollections("x")[0], message=turns[0].user)
    context = build(material(turns=turns, recalled=Recalled((inside,))))
    assert context.recall_block == ""
    assert ("recall", "in_window", 1) in [
        (d.layer, d.reason, d.count) for d in context.receipt.dropped
    ]


def test_trailing_user_messages_count_as_window_and_open_the_last_message() -> None:
    context = build(material("And now?", turns=[turn("My dog barks.", "", status="failed")]))
    assert context.messages[-1].content == "My dog barks.\n\nAnd now?"
    assert context.receipt.layers.window.messages == 1
    assert context.receipt.layers.window.tokens > 0


def test_the_prefix_stays_the_same_while_turns_are_only_added() -> None:
    turns = dialogue([(f"question {n}", f"answer {n}") for n in range(6)])
    before = build(material("question 5", turns=turns[:5]))
    after = build(
        material("question 6", turns=turns, previous_marks=before.prefix_marks),
    )
    assert after.messages[: len(before.messages) - 1] == before.messages[:-1]
    known = count_messages(counter(), before.messages[:-1]) - 3
    assert after.receipt.stable_prefix_tokens == known


def test_a_new_summary_leaves_the_system_text_as_stable_prefix() -> None:
    turns = dialogue([("question", "answer")] * 3)
    before = build(material(turns=turns))
    after = build(
        material(turns=turns, summary=Summary(text="Waiters."), previous_marks=before.prefix_marks)
    )
    assert after.receipt.stable_prefix_tokens == after.receipt.layers.system.tokens


def test_the_prefix_hash_tells_system_and_window_apart_from_question_and_recall() -> None:
    turns = dialogue([("question", "answer")])
    one = build(material("one", turns=turns))
    other = build(material("two", turns=turns, recalled=Recalled(recollections("x y z"))))
    different = build(material("one", turns=turns, system="Be kind."))
    assert one.receipt.prefix_hash == other.receipt.prefix_hash != different.receipt.prefix_hash


def test_a_summary_too_long_for_its_room_is_cut_visibly_and_one_without_room_is_told() -> None:
    long = Summary(text="Anna likes tea. " * 100, version=1, covers_through=4)
    cut_one = build(material(summary=long), budget(summary_tokens=60))
    assert " […] " in cut_one.messages[0].content
    hidden = build(material(summary=long), budget(summary_tokens=0))
    assert "<summary>\n" not in hidden.messages[0].content
    assert ("summary", "budget", 1) in [
        (d.layer, d.reason, d.count) for d in hidden.receipt.dropped
    ]


def test_turns_that_were_never_read_count_as_dropped_from_the_window() -> None:
    turns = dialogue([("hello", "hi")] * 2, start=401)
    summary = Summary(text="s", covers_through=200)
    context = build(material(summary=summary, turns=turns, unread=200))
    assert [(d.reason, d.count) for d in context.receipt.dropped] == [("budget", 200)]


def test_what_was_degraded_stands_in_the_receipt() -> None:
    context = build(
        material(degraded=("summary",), recalled=Recalled(degraded=("recall",))),
    )
    assert context.receipt.degraded == ("summary", "recall")


@pytest.mark.parametrize("counting", [counter(), EstimatedCounter()])
def test_the_receipt_says_whether_counts_are_estimates(counting: TokenCounter) -> None:
    assert build(material(), counting=counting).receipt.estimated is counting.estimated
