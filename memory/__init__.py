"""Strata: layered memory for chat. `open_memory` is the way in; `Strata.turn` what it is for."""

from memory import errors
from memory.config import BudgetConfig, MemoryConfig
from memory.errors import StrataError
from memory.history import FoundMemories, History
from memory.log.recording import Recorded
from memory.log.transitions import Incoming
from memory.models import Message, Recollection, Session, Turn, TurnError, User
from memory.open_turn import OpenTurn
from memory.receipt import ChatMessage, Context, Receipt
from memory.strata import Strata, open_memory
from memory.summary import ModelSummarizer, Summarizer
from memory.turn_request import TurnRequest

__all__ = [
    "BudgetConfig",
    "ChatMessage",
    "Context",
    "FoundMemories",
    "History",
    "Incoming",
    "MemoryConfig",
    "Message",
    "ModelSummarizer",
    "OpenTurn",
    "Receipt",
    "Recollection",
    "Recorded",
    "Session",
    "Strata",
    "StrataError",
    "Summarizer",
    "Turn",
    "TurnError",
    "TurnRequest",
    "User",
    "errors",
    "open_memory",
]

__version__ = "0.1.0"
