from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memory.errors import InvalidInput
from memory.interchange.conversations import batches, load_conversations
from unit.builders import NOON


def conversation() -> dict[str, Any]:
    return {
        "conversation_id": "c1",
        "user_id": "u1",
        "sessions": [
            {
                "session_id": "s1",
                "datetime": "2024-05-08T12:00:00",
                "turns": [
                    {"turn_id": "t1", "speaker": "Anna", "role": "user", "text": "hello"},
                    {"turn_id": "t2", "speaker": "Assistant", "role": "assistant", "text": "hi"},
                    {"turn_id": "t3", "speaker": "Anna", "role": "user", "text": "  "},
                ],
            }
        ],
        "questions": [
            {"question_id": "q1", "category": "x", "question": "?", "evidence": ["t1"], "more": 1}
        ],
    }


def test_the_uniform_format_becomes_batches_by_session(tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([conversation()]))
    (loaded,) = load_conversations(path)
    (batch,) = batches(loaded)
    assert (batch.user, batch.session_id, batch.place) == ("u1", "s1", "session s1")
    assert [(m.role, m.content, m.speaker, m.id) for m in batch.messages] == [
        ("user", "hello", "Anna", "t1"),
        ("assistant", "hi", None, "t2"),
    ]
    assert batch.messages[0].created_at == NOON
    assert next(batches(loaded, user="other")).user == "other"
    assert loaded.questions[0].evidence == ["t1"]


@pytest.mark.parametrize("raw", [b"{}", b"[{}]", b"\xff", b"["])
def test_a_bad_file_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "conversations.json"
    path.write_bytes(raw)
    with pytest.raises(InvalidInput, match=r"conversations\.json"):
        load_conversations(path)
