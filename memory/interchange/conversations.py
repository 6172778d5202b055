"""Conversations with labelled evidence, in the uniform format that evals measure.

The format is a list of `{"conversation_id","user_id","sessions":[{"session_id","datetime",
"turns":[{"turn_id","speaker","role","text"}]}],"questions":[…]}`; one conversation is one user's
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from memory.errors import InvalidInput
from memory.interchange.batch import BATCH, Batch, aware
from memory.log.transitions import Incoming


class SourceTurn(msgspec.Struct, frozen=True):
    turn_id: str
    speaker: str
    role: str
    text: str


class SourceSession(msgspec.Struct, frozen=True):
    session_id: str
    datetime: datetime
    turns: list[SourceTurn]


class SourceQuestion(msgspec.Struct, frozen=True):
    """`evidence` names the turns that hold the answer by their ids."""

    question_id: str
    category: str
    question: str
    evidence: list[str] = []
    answer: Any = None


class Conversation(msgspec.Struct, frozen=True):
    conversation_id: str
    user_id: str
    sessions: list[SourceSession]
    questions: list[SourceQuestion] = []


def load_conversations(path: Path) -> list[Conversation]:
    """The uniform format, whole. Raises InvalidInput naming the place."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Conversation])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(path.name, str(error)) from error


def batches(conversation: Conversation, *, user: str | None = None) -> Iterator[Batch]:
    """One conversation's messages, session by session, in order; those without text are left out.
    They are `user`'s, else the conversation's own user's."""
    for session in conversation.sessions:
        messages = [
            Incoming(
                role=turn.role,
                content=turn.text,
                created_at=aware(session.datetime),
                speaker=None if turn.speaker.casefold() == turn.role else turn.speaker,
                id=turn.turn_id,
            )
            for turn in session.turns
            if turn.text.strip()
        ]
        for start in range(0, len(messages), BATCH):
            yield Batch(
                user or conversation.user_id,
                session.session_id,
                messages[start : start + BATCH],
                f"session {session.session_id}",
            )
