"""What a point says about its passage beside its vectors: no text, no name, nothing readable."""

from __future__ import annotations

import hashlib
from typing import Any, TypedDict, cast

from memory.ids import MessageId, SessionKey, UserKey
from memory.text import words


class Features(TypedDict):
    """The part of a payload that ranking needs; by the rest a search only filters."""

    session: SessionKey
    message: MessageId
    role: str
    speakers: list[str]  # `name_hashes` of the speaker; empty without a name
    day: int  # proleptic ordinal of the day on which it was said
    tokens: int  # of this passage
    passage: int  # its number within the message, from 0


class Payload(Features):
    """All features of a passage (`base.Document` holds text, where an index is to keep it)."""

    user: UserKey
    expires_at: int  # seconds since 1970, rounded up


FEATURES = list(Features.__annotations__)


def features(payload: Payload) -> Features:
    """The part of a payload that ranking needs, as a value of its own."""
    known = cast(dict[str, Any], payload)
    return cast(Features, {name: known[name] for name in FEATURES})


def name_hash(user: UserKey, name: str) -> str:
    """A speaker's name as it stands in the index: 16 hex digits, tied to the user."""
    return hashlib.sha256(f"{user}\0{name.casefold()}".encode()).hexdigest()[:16]


def name_hashes(user: UserKey, speaker: str) -> list[str]:
    """The hashes of a speaker's whole name and of each of its words, sorted."""
    parts = {speaker.strip(), *(word for word in words(speaker) if len(word) > 1)}
    return sorted(name_hash(user, part) for part in parts)
