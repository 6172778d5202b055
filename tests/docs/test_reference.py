"""The reference page names every key, with its type, its default and its description."""

from __future__ import annotations

import re
import tomllib
from runpy import run_path

from system.process import ROOT

from service.config.loading import as_model
from service.config.settings import Settings

markdown_reference = run_path(str(ROOT / "docs" / "reference.py"))["markdown_reference"]


def rows(group: str) -> dict[str, list[str]]:
    """The cells of a group's table by key."""
    section = markdown_reference().partition(f"## `[{group}]`")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in lines}


def test_every_key_of_every_group_has_a_row() -> None:
    for name, field in Settings.model_fields.items():
        model = as_model(field.annotation)
        assert model is not None
        assert set(model.model_fields) <= set(rows(name)), name


def test_types_bounds_and_defaults_are_those_of_the_fields() -> None:
    assert rows("recall")["deadline"][:2] == ["duration", "`150ms`"]
    assert rows("recall")["candidates"][:2] == ["number, 1 to 1000", "`150`"]
    assert rows("ttl")["memory"][:2] == ["duration or `session`", "`365d`"]
    assert rows("ttl")["session"][1] == "`never`"
    assert rows("limits")["body"][:2] == ["size", "`256kB`"]
    assert rows("model")["api_key"][:2] == ["secret", "unset"]
    assert rows("window")["compact_to"][:2] == ["number, above 0 to 0.85", "`0.4`"]


def test_a_default_can_be_written_into_the_file() -> None:
    for group in Settings.model_fields:
        for name, cells in rows(group).items():
            default = cells[1].strip("`")
            if default in ("unset", "required"):
                continue
            value = default if re.match(r'["\[\d.]+$|^["\[tf]', default) else f'"{default}"'
            tomllib.loads(f"{name} = {value}")
