"""The opaque `cursor` of a list of sessions: where its next page begins."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from memory.errors import InvalidInput


def write_cursor(updated_at: datetime, key: str) -> str:
    """For the page after the session of this key, in the order of last activity."""
    return base64.urlsafe_b64encode(f"{updated_at.isoformat()} {key}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """What `write_cursor` was given. Raises InvalidInput."""
    try:
        moment, _, key = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        updated_at = datetime.fromisoformat(moment)
        updated_at.timestamp()
        return updated_at, key
    except (binascii.Error, UnicodeError, ValueError, OverflowError):
        raise InvalidInput("cursor", "use next_cursor of the page before, unchanged") from None
