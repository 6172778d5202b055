from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from memory.errors import InvalidInput
from memory.interchange.conversations import (
    BATCH,
    MAX_LINE_BYTES,
    aware,
    batches,
    load_conversations,
    read_lines,
)
from unit.builders import NOON


def line(content: str = "hello", session: str = "s", **more: Any) -> str:
    return json.dumps({"session_id": session, "role": "user", "content": content, **more})


def written(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "import.ndjson"
    raw = [item.encode() if isinstance(item, str) else item for item in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_lines_of_one_session_become_batches_in_order(tmp_path: Path) -> None:
    lines = [line(f"a{n}", "a") for n in range(BATCH + 1)] + [line("b0", "b"), line("a!", "a")]
    found = list(read_lines(written(tmp_path, *lines), user="u"))
    assert [(b.session_id, len(b.messages), b.place) for b in found] == [
        ("a", BATCH, "line 1"),
        ("a", 1, f"line {BATCH + 1}"),
        ("b", 1, f"line {BATCH + 2}"),
        ("a", 1, f"line {BATCH + 3}"),
    ]
    assert [m.content for m in found[0].messages] == [f"a{n}" for n in range(BATCH)]
    assert found[0].user == "u"


def test_a_line_may_carry_time_speaker_and_id(tmp_path: Path) -> None:
    path = written(
        tmp_path, line(created_at="2024-05-08T14:00:00.123456+02:00", speaker="Bruno", id="m1")
    )
    message = next(read_lines(path, user="u")).messages[0]
    assert message.created_at == NOON + timedelta(milliseconds=123)
    assert (message.speaker, message.id) == ("Bruno", "m1")


def test_empty_lines_are_passed_over_and_the_last_needs_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "import.ndjson"
    path.write_text("\n" + line("one") + "\n  \n" + line("two"))
    assert [m.content for b in read_lines(path, user="u") for m in b.messages] == ["one", "two"]


@pytest.mark.parametrize(
    "bad",
    [
        "{", "[]", "null", '{"session_id":"s"}', line(unknown=1), line(created_at="yesterday"),
        b'{"session_id":"s","role":"user","content":"\xff"}',
        line(created_at="0001-01-01T00:00:00+14:00"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_what_came_before_is_kept(tmp_path: Path, bad: str | bytes) -> None:
    reading = read_lines(written(tmp_path, line("good"), bad, line("later")), user="u")
    assert [m.content for m in next(reading).messages] == ["good"]
    with pytest.raises(InvalidInput) as caught:
        next(reading)
    assert caught.value.field == "line 2"


def test_an_endless_line_is_refused_before_it_is_read_and_what_came_before_is_kept(
    tmp_path: Path,
) -> None:
    reading = read_lines(written(tmp_path, line("good"), line("x" * MAX_LINE_BYTES)), user="u")
    assert [m.content for m in next(reading).messages] == ["good"]
    with pytest.raises(InvalidInput, match="longer than") as caught:
        next(reading)
    assert caught.value.field == "line 2"


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


def test_times_are_utc_and_cut_to_milliseconds() -> None:
    assert aware(None) is None
    assert aware(datetime(2024, 5, 8, 12, 0, 0, 1999)) == NOON + timedelta(milliseconds=1)
    east = timezone(timedelta(hours=2))
    assert aware(datetime(2024, 5, 8, 14, tzinfo=east)) == NOON
    moment = aware(datetime(2024, 5, 8, 14, tzinfo=east))
    assert moment is not None
    assert moment.tzinfo is UTC
