from __future__ import annotations

from pathlib import Path

import pytest

from evals.__main__ import DEFAULT_BUDGETS, parser
from evals.reporting.progress import plain


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "a.json", "b.json"],
        ["--data", "a.json", "--data", "b.json"],
    ],
)
def test_several_files_may_follow_one_option_or_several(arguments: list[str]) -> None:
    options = parser().parse_args(["recall", *arguments, "--out", "out"])
    assert options.data == [Path("a.json"), Path("b.json")]


def test_without_options_the_committed_sets_are_measured() -> None:
    options = parser().parse_args(["recall"])
    assert options.data is None
    assert options.budgets == list(DEFAULT_BUDGETS)
    assert options.out == Path("out/recall")


def test_budgets_are_told_once_and_in_order() -> None:
    assert parser().parse_args(["recall", "--budgets", "512,256,512"]).budgets == [512, 256]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["recall", "--budgets", "0"], "--budgets"),
        (["recall", "--budgets", "512,"], "--budgets"),
        (["recall", "--budgets", "many"], "--budgets"),
        (["cost", "--turns", "-1"], "--turns"),
        (["cost", "--turns", "few"], "--turns"),
        (["recall", "--data"], "--data"),
        (["guess"], "COMMAND"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert field in told


def test_progress_is_four_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    tell = plain("recall set")
    for done in range(1, 101):
        tell(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"recall set: {done}/100" for done in (25, 50, 75, 100)]
