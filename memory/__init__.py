"""Strata: layered memory for chat. `open_memory` is the way in."""

from memory.config import MemoryConfig
from memory.log.transitions import Incoming
from memory.models import User
from memory.strata import Strata, open_memory
from memory.turn_request import TurnRequest

__all__ = ["Incoming", "MemoryConfig", "Strata", "TurnRequest", "User", "open_memory"]

__version__ = "0.1.0"
