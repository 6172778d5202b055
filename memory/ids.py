"""The kinds of ids, told apart by the type checker; models.py derives them from each other."""

from __future__ import annotations

from typing import NewType

UserKey = NewType("UserKey", str)  # 32 hex digits: the hash of tenant and user
SessionKey = NewType("SessionKey", str)  # <user key>.<hash of the client's session id>
TurnId = NewType("TurnId", str)  # <session key>:<seq of its first message, 10 digits>
MessageId = NewType("MessageId", str)  # <turn id>.u or .a
