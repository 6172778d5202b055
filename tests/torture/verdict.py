"""Pure: what was acknowledged against what is stored, and against what the model was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torture.said import MARKER, Said, echo

Place = tuple[str, str]  # user and session
UNFINISHED = ("interrupted", "partial")
SHOWN = 5


@dataclass
class Verdict:
    """Each list names what went wrong, one line a case; `acknowledged` counts accepted turns."""

    turns: int = 0
    acknowledged: int = 0
    answered: int = 0
    calls: int = 0
    repeated_calls: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def wrong(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.disordered, *self.mixed]

    def told(self) -> str:
        """For the message of a failing check."""
        kinds = {n: getattr(self, n) for n in ("lost", "doubled", "disordered", "mixed")}
        return "\n".join(
            f"{len(found)} {name}: {found[:SHOWN]}" for name, found in kinds.items() if found
        )


def judge(
    said: Sequence[Said],
    histories: Mapping[Place, Sequence[Mapping[str, Any]]],
    prompts: Sequence[Mapping[str, Any]] | None = None,
) -> Verdict:
    """`histories` are the whole histories of the sessions, `prompts` the log of the model."""
    verdict = Verdict(
        turns=len(said),
        acknowledged=sum(bool(one.accepted) for one in said),
        answered=sum(one.done is not None for one in said),
    )
    of: dict[Place, list[Said]] = {}
    for one in said:
        of.setdefault((one.user, one.session), []).append(one)
    for place, lines in of.items():
        _judge_session(verdict, place, lines, histories[place])
    for one in said:
        _judge_receipts(verdict, one)
    if prompts is not None:
        _judge_prompts(verdict, said, prompts)
    return verdict


def _judge_session(
    verdict: Verdict, place: Place, said: Sequence[Said], messages: Sequence[Mapping[str, Any]]
) -> None:
    if [m["seq"] for m in messages] != list(range(1, len(messages) + 1)):
        verdict.disordered.append(f"{place}: seqs {[m['seq'] for m in messages]}")
    if [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        verdict.disordered.append(f"{place}: roles do not alternate")
    replies = dict(zip([m["seq"] for m in messages], messages[1:], strict=False))
    stored: dict[str, list[Mapping[str, Any]]] = {}
    for message in messages:
        if message["role"] == "user":
            stored.setdefault(message["content"], []).append(message)
    for text in stored.keys() - {one.text for one in said}:
        verdict.mixed.append(f"{place}: nobody said {text!r} here")
    newest: dict[str, int] = {}
    for one in said:
        found = stored.get(one.text, [])
        if len(found) > 1 or len(one.accepted) > 1:
            verdict.doubled.append(f"{one.marker}: {len(found)} times, as {one.accepted}")
        if one.accepted and not found:
            verdict.lost.append(f"{one.marker}: accepted as {one.accepted}")
        if not found:
            continue
        question = found[0]
        if one.accepted and question["seq"] not in {seq for _, seq in one.accepted}:
            verdict.disordered.append(f"{one.marker}: {one.accepted} is at {question['seq']}")
        if question["seq"] <= newest.get(one.tab, 0):
            verdict.disordered.append(f"{one.marker}: before what its tab said earlier")
        newest[one.tab] = question["seq"]
        _judge_reply(verdict, one, replies.get(question["seq"]))


def _judge_reply(verdict: Verdict, one: Said, reply: Mapping[str, Any] | None) -> None:
    whole = echo(one.text)
    if reply is None:
        verdict.lost.append(f"{one.marker}: no answer beside it")
        return
    for attempt in (one.done, one.again):
        if attempt is None or attempt.ended != "done":
            continue
        told = (attempt.text, attempt.message_id, "done")
        if told != (reply["content"], reply["id"], reply["status"]):
            verdict.lost.append(f"{one.marker}: answered {told}, stored {dict(reply)}")
    right = reply["content"] == whole or (
        reply["status"] in UNFINISHED and whole.startswith(reply["content"])
    )
    if not right:
        verdict.mixed.append(f"{one.marker}: {reply['status']} {reply['content']!r}")
    if reply["status"] not in ("done", *UNFINISHED):
        verdict.disordered.append(f"{one.marker}: its answer is {reply['status']}")


def _judge_receipts(verdict: Verdict, one: Said) -> None:
    for attempt in one.attempts:
        if attempt.used_tokens > attempt.budget_tokens:
            verdict.disordered.append(f"{one.marker}: a prompt beyond the budget")
        if attempt.text and not echo(one.text).startswith(attempt.text):
            verdict.mixed.append(f"{one.marker}: streamed {attempt.text!r}")
    if one.again is not None and one.done is not None and not one.again.replayed:
        verdict.doubled.append(f"{one.marker}: asked again and not replayed: {one.again}")


def _judge_prompts(
    verdict: Verdict, said: Sequence[Said], prompts: Sequence[Mapping[str, Any]]
) -> None:
    """One user in each prompt; one call a turn, more only after a fault."""
    calls: Counter[str] = Counter()
    for prompt in prompts:
        texts = [message["content"] for message in prompt["messages"]]
        users = {match[1] for text in texts for match in MARKER.finditer(text)}
        if len(users) > 1:
            verdict.mixed.append(f"a prompt with {sorted(users)}")
        if prompt["options"].get("stream"):
            verdict.calls += 1
            calls[asked(prompt)] += 1
    for one in said:
        if calls[one.marker] > 1 + one.hits:
            verdict.doubled.append(f"{one.marker}: {calls[one.marker]} calls, {one.hits} faults")
        if one.done and not calls[one.marker]:
            verdict.mixed.append(f"{one.marker}: answered without a call")
        verdict.repeated_calls += max(0, calls[one.marker] - 1)


def asked(prompt: Mapping[str, Any]) -> str:
    """The marker of the question of a prompt, which is the last in it."""
    found = list(MARKER.finditer(prompt["messages"][-1]["content"]))
    return found[-1][0] if found else ""


def earlier(prompt: Mapping[str, Any]) -> list[str]:
    """The markers of the questions in a prompt's window, oldest first."""
    said = [m["content"] for m in prompt["messages"][:-1] if m["role"] == "user"]
    return [match[0] for text in said for match in MARKER.finditer(text)]


def lacking(
    prompts: Iterable[Mapping[str, Any]], histories: Mapping[Place, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """R3: the prompts that do not hold all earlier turns of their session, in order. For sessions
    that fit into the window and that no fault has met."""
    order = {
        place: [MARKER.search(m["content"])[0] for m in messages[::2]]  # type: ignore[index]
        for place, messages in histories.items()
    }
    wrong = []
    for prompt in prompts:
        if not prompt["options"].get("stream"):
            continue
        question = asked(prompt)
        user, session, _, _ = question.split("-")
        questions = order[user, session]
        if question not in questions or (earlier(prompt) != questions[: questions.index(question)]):
            wrong.append(f"{question}: after {earlier(prompt)}")
    return wrong
