from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from memory.indexes.base import Point
from memory.projections.points import make_points, passages_of
from unit.builders import NEVER, IndexAround, assembled, counter, say, turn


def points(*, with_text: bool) -> list[Point]:
    new = passages_of([turn("My dog is called Bruno.", "Nice.", expires=NEVER)])
    return make_points([], new, [None] * len(new), counter(), with_text=with_text)


def test_a_point_carries_its_text_only_for_an_index_that_keeps_it() -> None:
    assert [point.document for point in points(with_text=False)] == [None, None]
    texts = [point.document and point.document["page_content"] for point in points(with_text=True)]
    assert texts == ["My dog is called Bruno.", "Nice."]


class Listening(IndexAround):
    def __init__(self, inner: object) -> None:
        super().__init__(inner)  # type: ignore[arg-type]
        self.written: list[Point] = []

    async def upsert(self, points: Sequence[Point]) -> None:
        self.written += points
        await self.inner.upsert(points)


class Keeping(Listening):
    keeps_text = True


@pytest.mark.parametrize("kind", [Listening, Keeping])
async def test_documents_are_not_made_for_an_index_that_keeps_no_text(
    tmp_path: Path, kind: type[Listening]
) -> None:
    async with assembled(tmp_path, around=kind) as strata:
        await say(strata, "My dog is called Bruno.", "Nice.", recall="none")
        await strata.caught_up()
        index = strata.index
        assert isinstance(index, Listening)
        assert len(index.written) == 2
        assert all((point.document is not None) is index.keeps_text for point in index.written)
