"""Strata: layered memory for chat. `open_memory` is the way in."""

from memory.ask import Ask
from memory.config import MemoryConfig
from memory.documents import Incoming
from memory.factory import Strata, open_memory
from memory.models import User

__all__ = ["Ask", "Incoming", "MemoryConfig", "Strata", "User", "open_memory"]
