from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memory.errors import InvalidInput
from memory.interchange.batch import BATCH
from memory.interchange.ndjson import MAX_LINE_BYTES, read_lines
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
