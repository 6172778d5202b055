"""`python -m evals` as a program, on the committed data sets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memory.tokens import ASSETS, TiktokenCounter

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "evals" / "data"
BUDGETS = (256, 512)
# Where tiktoken looks for o200k_base: the sha1 of the URL that it knows it by.
CACHE_NAME = "fb374d419588a4632f3f557e76b4b70aebbca790"
DEADLINE_SECONDS = 300.0
MOST_FILES = 32  # that one streamed turn touches in memory/ and service/


def run(
    *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A Python process in an empty folder: no configuration but the defaults."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the reports of one `recall` over all committed sets."""
    folder = tmp_path_factory.mktemp("recall")
    budgets = ",".join(map(str, BUDGETS))
    ended = run("-m", "evals", "recall", "--budgets", budgets, "--out", "here", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (folder / "here" / "report.md").read_text("utf-8")
    return folder / "here"


@pytest.fixture(scope="module")
def lines(measured: Path) -> list[dict[str, Any]]:
    text = (measured / "retrieved.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def read_report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text("utf-8")))


def test_the_report_has_the_shape_of_the_contract(measured: Path) -> None:
    report = read_report(measured)
    assert report["command"].startswith("python -m evals recall --budgets 256,512")
    assert {"date", "config"} <= set(report)
    assert [data["name"] for data in report["datasets"]] == ["small_de", "small_en", "small_zh"]
    for data in report["datasets"]:
        assert data["embedding"].startswith("ready ")
        assert data["degraded"] == {}
        assert data["questions"] >= 25
        assert set(data["latency_ms"]) == {"p50", "p99"}
        assert set(data["budgets"]) == {str(budget) for budget in BUDGETS}
        for budget, figures in data["budgets"].items():
            assert 0 <= figures["all"] <= figures["recall"] <= 100
            assert 0 < figures["tokens"] <= int(budget)
            assert figures["by_category"]


def test_english_evidence_is_mostly_found(measured: Path) -> None:
    english = next(d for d in read_report(measured)["datasets"] if d["name"] == "small_en")
    assert english["budgets"]["512"]["recall"] > 75


def test_every_question_has_a_line_for_every_budget(lines: Sequence[dict[str, Any]]) -> None:
    asked = [
        question["question_id"]
        for path in DATA.glob("*.json")
        for conversation in json.loads(path.read_text("utf-8"))
        for question in conversation["questions"]
    ]
    found = [(line["question_id"], line["budget"]) for line in lines]
    assert sorted(found) == sorted((name, budget) for name in asked for budget in BUDGETS)


def test_no_context_exceeds_its_budget(
    lines: Sequence[dict[str, Any]], counter: TiktokenCounter
) -> None:
    for line in lines:
        tokens = counter.count(line["context"])
        assert tokens == line["context_tokens"] <= line["budget"]


def test_the_benchmarks_scorer_agrees(measured: Path, tmp_path: Path) -> None:
    benchmarks = Path(os.environ.get("STRATA_BENCHMARKS") or ROOT.parent / "shared" / "benchmarks")
    scorer = benchmarks / "score.py"
    if not scorer.is_file():
        pytest.skip("no score.py: STRATA_BENCHMARKS names no folder with the benchmarks")
    shutil.copy(ASSETS / "tiktoken" / "o200k_base.tiktoken", tmp_path / CACHE_NAME)
    ended = run(
        scorer,
        measured / "retrieved.jsonl",
        *sorted(DATA.glob("*.json")),
        "--json",
        folder=tmp_path,
        environment={"TIKTOKEN_CACHE_DIR": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stderr
    score = json.loads(ended.stdout)
    assert score["tokens_recounted"]
    faults = score["faults"]
    assert set(faults.pop("questions_without_line").values()) == {0}
    assert set(faults.values()) == {0}
    for budget in map(str, BUDGETS):
        ours = read_report(measured)["datasets"]
        questions = sum(data["questions"] for data in ours)
        mean = sum(data["questions"] * data["budgets"][budget]["recall"] for data in ours)
        assert score["budgets"][budget]["ALL"]["questions"] == questions
        assert score["budgets"][budget]["ALL"]["recall"] == pytest.approx(
            mean / questions, abs=0.02
        )


def test_cost_is_replayed_turn_by_turn(tmp_path: Path) -> None:
    data = ("--data", DATA / "small_en.json", "--data", DATA / "small_zh.json")
    ended = run("-m", "evals", "cost", *data, "--turns", "12", "--out", "here", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    report = read_report(tmp_path / "here")
    assert [d["name"] for d in report["datasets"]] == ["small_en", "small_zh"]
    for found in report["datasets"]:
        assert (found["turns"], found["turns_limit"]) == (12, 12)
        assert found["prompt_tokens"]["max"] <= report["config"]["budget"]["context_tokens"]
        assert set(found["prompt_tokens"]) == {"mean", "p50", "p95", "max"}
        assert set(found["against"]) == {"all_history", "session_history", "last_20"}
        assert 0 < found["stable_prefix"]["share_within_session"] < 100
        assert found["degraded"] == {}


def test_one_turn_is_followed_through_the_code(tmp_path: Path) -> None:
    """From route to store and back; and it touches no more files than it has to."""
    ended = run("-m", "evals", "trace", "--files", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    files = re.findall(r"^- (\S+)$", ended.stdout, re.MULTILINE)
    for file in ("service/routes/turns.py", "memory/orchestrator.py", "memory/recall/search.py",
                 "memory/window.py", "memory/stores/sqlite/turns.py"):  # fmt: skip
        assert file in files
    assert f"touches {len(files)} files" in ended.stdout
    assert len(files) <= MOST_FILES, files


def test_the_cpu_of_a_turn_is_measured(tmp_path: Path) -> None:
    ended = run("-m", "evals", "cpu", "--turns", "5", "--rounds", "1", "--offline", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "out" / "cpu" / "cpu.jsonl").read_text())
    assert (figures["turns"], figures["rounds"], figures["ratio"]) == (5, 1, None)
    assert 0 < figures["ms"] < 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nowhere.json"), "--data nowhere.json: cannot be read"),
        (("--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("--budgets", "none"), "--budgets"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    ended = run("-m", "evals", "recall", *arguments, "--out", "here", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert told in ended.stderr
