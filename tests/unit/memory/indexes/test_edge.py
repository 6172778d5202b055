from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract.test_index import point

from memory.embeddings import sparse_query
from memory.errors import IndexUnavailable
from memory.indexes import edge
from memory.indexes.edge import EdgeIndex
from unit.builders import NOON


async def test_a_folder_belongs_to_one_index_at_a_time(tmp_path: Path) -> None:
    first, second = EdgeIndex(tmp_path / "index"), EdgeIndex(tmp_path / "index")
    await first.open()
    with pytest.raises(IndexUnavailable):
        await second.open()
    await first.close()
    await second.close()


async def test_the_model_in_use_is_recorded_beside_the_folder(tmp_path: Path) -> None:
    index = EdgeIndex(tmp_path / "index")
    await index.open()
    await index.use_model("letters", 8)
    recorded = json.loads((tmp_path / "index.model.json").read_text())
    assert (recorded["model"], recorded["dimensions"]) == ("letters", 8)
    await index.close()


async def test_a_model_file_without_its_index_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.model.json").write_text('{"vector": "dense-x", "model": "old"}')
    index = EdgeIndex(tmp_path / "index")
    assert await index.open()
    assert await index.use_model("letters", 8)
    await index.close()


async def test_vectors_without_a_model_are_refused(tmp_path: Path) -> None:
    index = EdgeIndex(tmp_path / "index")
    await index.open()
    with pytest.raises(IndexUnavailable):
        await index.update_dense([("5d0c2c1e-6f0e-5a39-9a43-6d2f0f3f7a10", [1.0])])
    await index.close()


async def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    index = EdgeIndex(tmp_path / "index")
    await index.open()
    await index.close()
    await index.close()


async def test_features_that_memory_has_no_room_for_are_read_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest quarter is forgotten, never all at once."""
    monkeypatch.setattr(edge, "KNOWN_POINTS", 8)
    index = EdgeIndex(tmp_path / "index")
    await index.open()
    await index.upsert([point(f"tea {n}", dense=False) for n in range(12)])
    for known in (10, 8):
        await index.search(
            user="anna", sparse=sparse_query("nothing"), dense=None, limit=9, now=NOON
        )
        assert len(index._known) == known
    hits = await index.search(
        user="anna", sparse=sparse_query("tea"), dense=None, limit=99, now=NOON
    )
    found = {hit.payload["message"] for hit in hits.lexical}
    assert found == {f"anna.s1.tea {n}" for n in range(12)}
    await index.close()
