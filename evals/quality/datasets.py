"""Data sets from files: the uniform format, and checked for what would spoil a measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from memory.errors import InvalidInput
from memory.interchange.conversations import Conversation, load_conversations

COMMITTED = Path(__file__).parents[1] / "data"


class DataSet(NamedTuple):
    """`name` is the file's, without its ending."""

    name: str
    conversations: list[Conversation]


def committed() -> list[Path]:
    """The data sets that come with Strata, in the order of their names."""
    return sorted(COMMITTED.glob("*.json"))


def load(paths: Sequence[Path]) -> list[DataSet]:
    """Every file, whole. Raises InvalidInput naming file, place and fix."""
    sets = [DataSet(path.stem, _read(path)) for path in paths]
    twice = _twice(q.question_id for s in sets for c in s.conversations for q in c.questions)
    if twice:
        raise InvalidInput(
            "--data", f"question {twice!r} stands there twice (give each file and question once)"
        )
    return sets


def _read(path: Path) -> list[Conversation]:
    try:
        conversations = load_conversations(path)
    except OSError as error:
        problem = f"cannot be read: {error.strerror} (give a JSON file in the uniform format)"
        raise InvalidInput(f"--data {path}", problem) from error
    except InvalidInput as error:
        problem = str(error).removeprefix(f"{error.field}: ")
        raise InvalidInput(f"--data {path}", f"{problem} (write the uniform format)") from error
    if not conversations:
        raise InvalidInput(f"--data {path}", "holds no conversation (put at least one in)")
    user = _twice(conversation.user_id for conversation in conversations)
    if user:
        raise InvalidInput(
            f"--data {path}", f"user_id {user!r} has two conversations (one user, one conversation)"
        )
    for conversation in conversations:
        _check(path, conversation)
    return conversations


def _check(path: Path, conversation: Conversation) -> None:
    def refuse(place: str, problem: str) -> InvalidInput:
        return InvalidInput(f"--data {path}", f"{conversation.conversation_id}, {place}: {problem}")

    turns = {turn.turn_id: turn for s in conversation.sessions for turn in s.turns}
    session = _twice(s.session_id for s in conversation.sessions)
    if session:
        raise refuse(f"session_id {session!r}", "stands there twice (rename one)")
    turn_id = _twice(turn.turn_id for s in conversation.sessions for turn in s.turns)
    if turn_id:
        raise refuse(f"turn_id {turn_id!r}", "stands there twice (rename one)")
    for turn in turns.values():
        if turn.role not in ("user", "assistant"):
            raise refuse(f"turn {turn.turn_id!r}", f"role {turn.role!r} (use user or assistant)")
    for question in conversation.questions:
        place = f"question {question.question_id!r}"
        if not question.question.strip():
            raise refuse(place, "question is blank (write it or leave it out)")
        for evidence in question.evidence:
            if evidence not in turns or not turns[evidence].text.strip():
                raise refuse(place, f"evidence {evidence!r} is no turn with text (correct it)")


def _twice(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once."""
    return next((name for name, times in Counter(names).items() if times > 1), None)
