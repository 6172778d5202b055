"""The measurement of a start itself, on a small store; its bounds hold on a quiet machine."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from evals.speed.start import as_release_0_1_0, fill, run, table

DUMP = Path(__file__).parents[2] / "memory" / "stores" / "sqlite" / "release_0_1_0.sql"


async def test_every_figure_is_measured() -> None:
    figures = await run(sessions=30, tell=lambda _: None)
    assert figures.sessions == 30
    assert 0 < figures.first_turn_seconds <= figures.model_seconds
    assert figures.longest_turn_seconds > 0
    assert figures.migration_seconds >= 0
    assert figures.writes_seconds > 0
    assert table(figures).count("\n") == 7


def test_the_file_of_release_0_1_0_has_its_tables(tmp_path: Path) -> None:
    fill(tmp_path / "strata.db", 3)
    as_release_0_1_0(tmp_path / "strata.db")
    with closing(sqlite3.connect(":memory:")) as theirs:
        theirs.executescript(DUMP.read_text())
        with closing(sqlite3.connect(tmp_path / "strata.db")) as made:
            assert _tables(made) == _tables(theirs)
            assert made.execute("PRAGMA user_version").fetchone() == (0,)
            assert made.execute("SELECT count(*) FROM sessions").fetchone() == (3,)


def _tables(db: sqlite3.Connection) -> dict[str, list[str]]:
    """The columns of each table, and the names of its indexes."""
    found = {}
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
        indexes = sorted(row[1] for row in db.execute(f"PRAGMA index_list({name})"))
        found[name] = [*columns, *indexes]
    return found
