from __future__ import annotations

from pathlib import Path

import pytest

from memory import MemoryConfig, TurnRequest, open_memory
from memory.errors import ConfigError, StoreUnavailable
from memory.indexes import make_index
from memory.stores import file_path, make_store
from unit.builders import SESSION, USER, config, opened, say


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///.strata/strata.db", ".strata/strata.db"),
        ("sqlite:////data/strata.db", "/data/strata.db"),
        ("sqlite:///", None),
        ("sqlite://host/strata.db", None),
        ("mongodb:///x", None),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str | None) -> None:
    assert file_path(url, "sqlite") == (Path(path) if path else None)


def test_a_url_that_nothing_serves_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"store\.url.*sqlite:///"):
        make_store(MemoryConfig.model_validate({"store": {"url": "redis://x"}}))
    with pytest.raises(ConfigError, match=r"index\.url.*edge:///"):
        make_index(MemoryConfig.model_validate({"index": {"url": "redis://x"}}))
    assert make_index(MemoryConfig.model_validate({"index": {"url": "none"}})) is None


async def test_a_memory_that_is_open_is_not_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(StoreUnavailable):
            async with open_memory(config(tmp_path), background=False):
                pass
    async with opened(tmp_path):
        pass


async def test_what_was_said_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await say(strata, "My dog is called Bruno.", "Nice.")
        await strata.caught_up()
    async with opened(tmp_path) as strata:
        await strata.caught_up()
        assert (await say(strata, "Hello again.")).seq == 3
        ask = TurnRequest(user=USER, session_id="new", question="What is my dog called?")
        assert "Bruno" in (await strata.memory.preview(ask)).recall_block


async def test_turns_left_running_by_a_crash_are_interrupted_when_opened(tmp_path: Path) -> None:
    async with opened(tmp_path) as strata:
        await strata.memory.begin(TurnRequest(user=USER, session_id=SESSION, question="hello"))
    async with opened(tmp_path) as strata:
        page, _ = await strata.history.messages(USER, SESSION, before=None, limit=9)
        assert [m.status for m in page] == ["done", "interrupted"]
        assert (await say(strata, "again")).seq == 3


async def test_an_error_inside_closes_everything(tmp_path: Path) -> None:
    async def fail() -> None:
        async with open_memory(config(tmp_path), background=True):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await fail()
