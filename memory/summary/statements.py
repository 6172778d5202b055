"""Pure: messages and rolled texts as statements, one line each under its day.

8 May 2024:
User: My dog is called Bruno.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from memory.models import Message
from memory.text import sentences, speaker_of, split_unspaced, words, written_day

MAX_STATEMENT_CHARACTERS = 400

_MARK = re.compile(
    r"\d[\d.,:/-]*\d|\d"  # numbers, dates, times
    r"|(?<=[\w,;:’'\"(-] )[A-ZÀ-ÖØ-ÞА-Я][\w’'-]+"  # names inside a sentence
    r"|[零〇一二两三四五六七八九十百千万]+(?=[年月日号天周点岁元块楼位])"
)
_DAY_LINE = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}:")


class Statement(NamedTuple):
    """One line under its day; `marks` are the names, numbers and dates that it holds."""

    day: str
    line: str
    marks: frozenset[str]


def statements(messages: Sequence[Message]) -> list[Statement]:
    """What these messages state, in order: the user's sentences, and those sentences of the
    assistant that hold a name, a number or a date. Questions state nothing."""
    found = []
    for message in messages:
        day, name = _day_of(message), _name_of(message)
        for start, end in sentences(message.content, longest=MAX_STATEMENT_CHARACTERS):
            sentence = " ".join(message.content[start:end].split())
            if len(words(split_unspaced(sentence))) < 2 or sentence.endswith(("?", "？")):
                continue
            marks = marks_of(sentence)
            if marks or message.role == "user" or message.speaker:
                found.append(Statement(day, f"{name}: {sentence}", marks))
    return found


def marks_of(text: str) -> frozenset[str]:
    """The names, numbers and dates in `text`, case folded."""
    return frozenset(mark.strip(".,:/-’'").casefold() for mark in _MARK.findall(text))


def parse(text: str) -> list[Statement]:
    """The lines of a rolled text as statements again."""
    found, day = [], ""
    for line in text.splitlines():
        line = line.strip()
        if _DAY_LINE.fullmatch(line):
            day = line
        elif line:
            found.append(Statement(day, line, marks_of(line)))
    return found


def render(chosen: Sequence[Statement]) -> str:
    """Statements as a rolled text: a line for each, and one for each new day."""
    lines, day = [], ""
    for statement in chosen:
        if statement.day != day and statement.day:
            lines.append(statement.day)
            day = statement.day
        lines.append(statement.line)
    return "\n".join(lines)


def transcript(messages: Sequence[Message]) -> str:
    """Messages as lines under their days, all of them, in order."""
    return render(
        [Statement(_day_of(m), f"{_name_of(m)}: {m.content}", frozenset()) for m in messages]
    )


def _day_of(message: Message) -> str:
    return f"{written_day(message.created_at.date())}:"


def _name_of(message: Message) -> str:
    return message.speaker or speaker_of(message).capitalize()
