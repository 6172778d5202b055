from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from evals.quality import cost, recall
from evals.reporting.report import (
    cost_tables,
    make_folder,
    recall_tables,
    report,
    write,
    write_lines,
)
from memory import MemoryConfig
from memory.config import RecallConfig
from memory.errors import InvalidInput


def recall_part(*, name: str = "set") -> dict[str, Any]:
    return recall.figures(name, [], budgets=[512, 1024], embedding="ready some/model@1")


def cost_part() -> dict[str, Any]:
    return {
        "name": "set",
        "embedding": "off",
        "estimated": False,
        "conversations": 1,
        "turns_limit": None,
        **cost.figures([], []),
    }


def test_a_report_has_the_shape_of_the_contract() -> None:
    content = report("python -m evals recall", MemoryConfig(), [recall_part()])
    assert list(content) == ["command", "date", "config", "datasets"]
    (data,) = content["datasets"]
    assert {"name", "questions", "budgets", "latency_ms"} <= set(data)
    assert set(data["budgets"]) == {"512", "1024"}
    assert set(data["budgets"]["512"]) == {"recall", "all", "tokens", "by_category"}
    assert set(data["latency_ms"]) == {"p50", "p99"}


def test_the_configuration_is_told_without_places_and_secrets() -> None:
    config = report("x", MemoryConfig(), [])["config"]
    assert set(config) == {"budget", "window", "recall", "embedding"}


def test_infinity_is_written_as_never() -> None:
    config = MemoryConfig(recall=RecallConfig(deadline=math.inf))
    assert report("x", config, [])["config"]["recall"]["deadline"] == "never"


def test_both_files_are_written(tmp_path: Path) -> None:
    content = report("python -m evals recall", MemoryConfig(), [recall_part()])
    text = write(tmp_path, content, recall_tables)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == content
    assert (tmp_path / "report.md").read_text("utf-8") == text


def test_lines_end_with_a_newline_each(tmp_path: Path) -> None:
    write_lines(tmp_path / "retrieved.jsonl", [b"{}", b"[]"])
    assert (tmp_path / "retrieved.jsonl").read_bytes() == b"{}\n[]\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"--out .*file: cannot be made"):
        make_folder(tmp_path / "file")


def test_recall_tables_show_every_set_and_budget() -> None:
    parts = [recall_part(), recall_part(name="other")]
    text = recall_tables(report("python -m evals recall", MemoryConfig(), parts))
    assert "`python -m evals recall`" in text
    assert "## set" in text
    assert "## other" in text
    assert "| 1024 " in text


def test_cost_tables_show_prompt_and_histories() -> None:
    text = cost_tables(report("python -m evals cost", MemoryConfig(), [cost_part()]))
    for word in ("prompt", "all_history", "session_history", "last_20", "degraded: never"):
        assert word in text


def test_tables_are_aligned() -> None:
    text = cost_tables(report("python -m evals cost", MemoryConfig(), [cost_part()]))
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({len(line) for line in table.splitlines()}) == 1
