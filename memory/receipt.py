"""What is sent to the model, and its account: tokens of each layer, what stayed out and why."""

from __future__ import annotations

from typing import Literal

import msgspec

from memory.ids import MessageId


class LayerTokens(msgspec.Struct, frozen=True):
    tokens: int = 0


class SummaryLayer(msgspec.Struct, frozen=True):
    tokens: int = 0
    version: int = 0
    covers_through: int = 0
    retired: int = 0


class WindowLayer(msgspec.Struct, frozen=True):
    tokens: int = 0
    messages: int = 0
    first_seq: int | None = None
    last_seq: int | None = None


class RecallItem(msgspec.Struct, frozen=True, kw_only=True):
    message_id: MessageId
    session_id: str
    seq: int
    score: float
    dense_rank: int | None
    lexical_rank: int | None


class RecallLayer(msgspec.Struct, frozen=True):
    tokens: int = 0
    items: tuple[RecallItem, ...] = ()


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    system: LayerTokens = LayerTokens()
    facts: LayerTokens = LayerTokens()
    summary: SummaryLayer = SummaryLayer()
    window: WindowLayer = WindowLayer()
    recall: RecallLayer = RecallLayer()
    question: LayerTokens = LayerTokens()


class Dropped(msgspec.Struct, frozen=True):
    """`count` messages (statements, for the summary) of `layer` that were left out, and why."""

    layer: str
    reason: str
    count: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a context. The layers' tokens add up to `used_tokens` ≤ `budget_tokens`."""

    budget_tokens: int
    used_tokens: int
    estimated: bool
    layers: Layers
    dropped: tuple[Dropped, ...]
    degraded: tuple[str, ...]
    prefix_hash: str
    stable_prefix_tokens: int


class ChatMessage(msgspec.Struct, frozen=True):
    """One message as the model receives it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to the model, and its account.

    `prefix_marks` are the hashes after each stable part of the prompt; the next turn compares
    its own with them to tell how many leading tokens a provider's cache can reuse.
    `recall_block` is the fenced text of recall as it stands in the last message.
    """

    messages: tuple[ChatMessage, ...]
    receipt: Receipt
    prefix_marks: tuple[str, ...]
    recall_block: str
