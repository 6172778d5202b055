"""Sizes: as they are written, and what is none."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.config.settings import LimitsConfig


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("64kB", 64_000), ("256KB", 256_000), ("1MB", 1_000_000), ("1 GB", 10**9), ("7b", 7),
        ("7", 7), (7, 7), (" 64kb ", 64_000),
    ],
)  # fmt: skip
def test_sizes_are_bytes(written: Any, size: int) -> None:
    """kB is 1,000 bytes."""
    assert LimitsConfig.model_validate({"body": written}).body == size


@pytest.mark.parametrize("written", ["lots", "", "64xB", "-1kB", -1, True, 1.5, None])
def test_anything_else_is_no_size_and_the_error_shows_how_one_is_written(written: Any) -> None:
    with pytest.raises(ValidationError, match="write a size as 64kB, 1MB or a number of bytes"):
        LimitsConfig.model_validate({"body": written})


@pytest.mark.parametrize("written", [0, "0kB"])
def test_a_size_is_above_zero(written: Any) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        LimitsConfig.model_validate({"body": written})
