from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from evals.__main__ import app, budgets_of, main, spread
from evals.reporting.progress import plain


def options_of(command: str, *arguments: str) -> dict[str, Any]:
    """What a command would be called with."""
    group: Any = typer.main.get_command(app)
    context = group.commands[command].make_context(command, spread(arguments))
    return dict(context.params)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "a.json", "b.json"],
        ["--data", "a.json", "--data", "b.json"],
    ],
)
def test_several_files_may_follow_one_option_or_several(arguments: list[str]) -> None:
    options = options_of("recall", *arguments, "--out", "out")
    assert list(options["data"]) == [Path("a.json"), Path("b.json")]
    assert options["out"] == Path("out")


def test_without_options_the_committed_sets_are_measured() -> None:
    options = options_of("recall")
    assert not options["data"]
    assert budgets_of(options["budgets"]) == [512, 1024, 2048]
    assert options["out"] == Path("out/recall")


def test_budgets_are_told_once_and_in_order() -> None:
    assert budgets_of("512,256,512") == [512, 256]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["recall", "--budgets", "0"], "--budgets"),
        (["recall", "--budgets", "512,"], "--budgets"),
        (["recall", "--budgets", "many"], "--budgets"),
        (["cost", "--turns", "-1"], "--turns"),
        (["cost", "--turns", "few"], "--turns"),
        (["recall", "--data"], "--data"),
        (["guess"], "command 'guess'"),
        ([], "command"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert field in said.err


def test_progress_is_four_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    tell = plain("recall set")
    for done in range(1, 101):
        tell(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"recall set: {done}/100" for done in (25, 50, 75, 100)]
