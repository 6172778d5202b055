"""How many answers may be open at once, for each user and in this process."""

from __future__ import annotations

from collections import Counter

from service.http.problems import Problem

RETRY_AFTER_SECONDS = 1.0


class Slot:
    """One open answer. It counts until the last of its holders lets it go.

    Who took it holds it. The answer's producer and each of its readers hold it too: an answer
    that has ended still counts while somebody reads it, however slowly.
    """

    __slots__ = ("_holders", "_streams", "_user_key")

    def __init__(self, streams: Streams, user_key: str) -> None:
        self._streams = streams
        self._user_key = user_key
        self._holders = 1

    def hold(self) -> None:
        assert self._holders, "a slot that is free again belongs to somebody else"
        self._holders += 1

    def release(self) -> None:
        """Once for `take` and once for each `hold`, by whoever called them."""
        assert self._holders, "a slot is released once by each of its holders"
        self._holders -= 1
        if self._holders == 0:
            self._streams.free(self._user_key)


class Streams:
    """Counts the open answers of this process; one limit is each user's, one is for all."""

    def __init__(self, *, per_user: int, total: int) -> None:
        self._per_user = per_user
        self._total = total
        self._open: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        """How many are open."""
        return self._count

    def take(self, user_key: str) -> Slot:
        """A slot that the caller holds. Raises Problem: 429 `too_many_streams` when the user has
        all that one may have (told first), 503 `overloaded` when the process has."""
        if self._open[user_key] >= self._per_user:
            raise Problem(
                429,
                f"{self._per_user} answers of this user are open (limits.streams_per_user)",
                code="too_many_streams",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if self._count >= self._total:
            raise Problem(
                503,
                f"{self._total} answers are open here (limits.streams)",
                code="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._open[user_key] += 1
        self._count += 1
        return Slot(self, user_key)

    def free(self, user_key: str) -> None:
        """For a slot whose last holder has let it go."""
        self._count -= 1
        self._open[user_key] -= 1
        if not self._open[user_key]:
            del self._open[user_key]
