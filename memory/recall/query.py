"""Pure: what a question says about where its answer stands: names, dates, who is asked about.

The rules for words are English and apply only to questions detected as English; ISO dates are
understood everywhere. In any other language nothing is rewritten and nothing boosted.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import NamedTuple

from memory.ids import UserKey
from memory.indexes.features import name_hash
from memory.text import detect_language, words

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan", "february feb", "march mar", "april apr", "may", "june jun",
            "july jul", "august aug", "september sep sept", "october oct", "november nov",
            "december dec",
        ),
        start=1,
    )
    for name in names.split()
}  # fmt: skip
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_ISO = re.compile(r"\b(\d{4})-(\d{2})(?:-(\d{2}))?\b")
_DAY_FIRST = re.compile(
    rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b\.?,?(?: (\d{{4}}))?", re.IGNORECASE
)
_MONTH_FIRST = re.compile(
    rf"\b({_MONTH})\b\.? (\d{{1,2}})(?:st|nd|rd|th)?\b(?!\d),?(?: (\d{{4}}))?", re.IGNORECASE
)
_MONTH_YEAR = re.compile(rf"\b({_MONTH})\b\.?,? (?:of )?(\d{{4}})\b", re.IGNORECASE)
_ASSISTANT_ELSEWHERE = re.compile(
    r"\b(?:hast|hattest) du\b|\blaut dir\b|\bdein(?:en?|em|er)? (?:rat|tipps?|vorschlag|vorschläge|"
    r"empfehlung(?:en)?|antwort)\b|你(?:之前|上次|曾经?)?(?:给我)?(?:建议|推荐|说|提|告诉|教)",
    re.IGNORECASE,
)
_ASSISTANT = re.compile(
    r"\b(?:did|have|had|were|was) you\b|\byou (?:said|told|gave|recommend\w*|suggest\w*|"
    r"mention\w*|advise\w*|explain\w*|propose\w*|list\w*|wrote|provided|showed|described)\b|"
    r"\byour (?:answer|advice|suggestion|recommendation|explanation|response|reply|list)s?\b|"
    r"\b(?:the|an?) assistant\b",
    re.IGNORECASE,
)


DENSE_CHARACTERS = 1000


class Mention(NamedTuple):
    """A day (`day` set) or a whole month; without `year` it means any year."""

    year: int | None
    month: int
    day: int | None


class Query(NamedTuple):
    """`dense` is what is embedded; `names` are the hashed participants that it names."""

    text: str
    dense: str
    names: frozenset[str]
    dates: tuple[Mention, ...]
    asks_assistant: bool
    english: bool = True


def read(text: str, *, user: UserKey, speakers: frozenset[str]) -> Query:
    """Understand a question of `user`, in whose memory `speakers` (hashed names) take part."""
    english = detect_language(text) == "english"
    names = {}
    if speakers:
        hashes = ((word, name_hash(user, word)) for word in _name_like(text))
        names = {word: hashed for word, hashed in hashes if hashed in speakers}
    dense = _first_person(text, names) if english else text
    if len(dense) > DENSE_CHARACTERS:
        # A model reads no more than about this, and takes long for it; the question itself
        # stands at the beginning of a pasted text or at its end.
        dense = f"{dense[: DENSE_CHARACTERS // 2]} {dense[-DENSE_CHARACTERS // 2 :]}"
    return Query(
        text=text,
        dense=dense,
        names=frozenset(names.values()),
        dates=_dates(text, english=english),
        asks_assistant=bool((_ASSISTANT if english else _ASSISTANT_ELSEWHERE).search(text)),
        english=english,
    )


def _name_like(text: str) -> set[str]:
    """Words that may be names: capitalised ones, or any in a question without capitals."""
    found = {re.sub(r"['’]s?$", "", word) for word in words(text)}
    capitals = {word for word in found if word[:1].isupper() or not word[:1].islower()}
    return capitals if any(word[:1].isupper() for word in found) else found


def _first_person(text: str, names: dict[str, str]) -> str:
    """People speak of themselves in the first person, so that is what the vector looks for."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}['’]s?(?!\w)", "my", text)
        text = re.sub(rf"\b{re.escape(name)}\b", "I", text)
    return text


def _dates(text: str, *, english: bool) -> tuple[Mention, ...]:
    found: list[Mention] = []
    for year, month, day in _ISO.findall(text):
        found.append(Mention(int(year), int(month), int(day) if day else None))
    if english:
        for day, month, year in _DAY_FIRST.findall(text):
            found.append(Mention(int(year) if year else None, _MONTHS[month.lower()], int(day)))
        for month, day, year in _MONTH_FIRST.findall(text):
            found.append(Mention(int(year) if year else None, _MONTHS[month.lower()], int(day)))
        for month, year in _MONTH_YEAR.findall(text):
            if not any(m.month == _MONTHS[month.lower()] and m.day for m in found):
                found.append(Mention(int(year), _MONTHS[month.lower()], None))
    return tuple(m for m in found if 1 <= m.month <= 12 and (m.day is None or 1 <= m.day <= 31))


def date_match(mentions: tuple[Mention, ...], said: date) -> float:
    """How well the day on which something was said suits the question: 0 … 1.

    A day: 1 within -1 … +2 days, 0.5 up to 8 days after, 0.25 up to a month after (things are
    told later than they happen). A month: 1 in it, 0.5 in the next.
    """
    return max((_match(mention, said) for mention in mentions), default=0.0)


def _match(mention: Mention, said: date) -> float:
    if mention.year is None:  # any year: also the one before, for what is said in January
        years = (said.year - 1, said.year, said.year + 1)
        return max(_match(mention._replace(year=year), said) for year in years)
    year = mention.year
    if mention.day is None:
        months = (said.year - year) * 12 + said.month - mention.month
        return {0: 1.0, 1: 0.5}.get(months, 0.0)
    try:
        days = (said - date(year, mention.month, mention.day)) / timedelta(days=1)
    except ValueError:  # 30 February, year 0
        return 0.0
    if -1 <= days <= 2:
        return 1.0
    if 2 < days <= 8:
        return 0.5
    return 0.25 if 8 < days <= 31 else 0.0
