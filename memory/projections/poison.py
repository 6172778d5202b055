"""Which messages are the fault when a batch fails again and again: each is tried alone.

A message is poisoned when its write fails alone while a harmless one succeeds at the same moment:
an index or a model that is away poisons nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from memory.embeddings import DenseModel
from memory.errors import EmbeddingUnavailable, IndexUnavailable, StoreUnavailable
from memory.ids import MessageId
from memory.indexes.base import VectorIndex
from memory.models import Message, Turn, now
from memory.stores.base import WorkStore

log = structlog.get_logger("strata.projector")

# So often a message must fail alone, each time with a control that succeeds right after it.
ALONE_TRIES = 5
CONTROL = MessageId("control")
_REASONS: dict[type[Exception], str] = {
    EmbeddingUnavailable: "embedding",
    IndexUnavailable: "index",
}


class Probe(NamedTuple):
    """A write of one message of a turn; `embeds` if the embedding model takes part in it."""

    write: Callable[[Turn, Message], Awaitable[int]]
    embeds: bool


class Poison:
    def __init__(self, *, work: WorkStore, index: VectorIndex, model: DenseModel) -> None:
        self._work = work
        self._index = index
        self._model = model

    async def find(self, turn: Turn, probes: Sequence[Probe]) -> None:
        """Write each message of this turn alone, and mark those poisoned with which that fails:
        they must not keep later ones from being found. Raises what the control raises."""
        reasons: dict[MessageId, str] = {}
        for probe in probes:
            for message in turn.messages:
                failure = await self._failure(turn, message, probe)
                if failure is not None:
                    reasons[message.id] = _REASONS.get(type(failure), type(failure).__name__)
        for message_id, reason in reasons.items():
            await self._work.mark_poisoned(message_id, reason=reason, now=now())
            log.error(
                "projection.poisoned", session=turn.session_key, message=message_id, reason=reason
            )

    async def _failure(self, turn: Turn, message: Message, probe: Probe) -> Exception | None:
        """Why this message is poisoned; None if a try succeeds."""
        failure: Exception | None = None
        for _ in range(ALONE_TRIES):
            await self._control(turn, probe)
            try:
                await probe.write(turn, message)
            except StoreUnavailable:
                raise
            except Exception as error:  # whatever a text can do to what reads it
                failure = error
            else:
                return None
        await self._control(turn, probe)
        return failure

    async def _control(self, turn: Turn, probe: Probe) -> None:
        """A harmless write, and a short text for the model."""
        await self._index.delete_messages(user=turn.user_key, messages=[CONTROL])
        if probe.embeds:
            await self._model.documents([CONTROL])
