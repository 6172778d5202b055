"""The configuration as an operator sees it: TOML that can be used again, with secrets masked."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import tomli_w
from pydantic import BaseModel, SecretStr

from service.config.settings import Settings

MASK = "********"
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]+@")
_COMMENT_COLUMNS = 98


def without_password(url: str) -> str:
    """`url` as it may be shown and logged."""
    return _PASSWORD.sub(rf"\1{MASK}@", url)


def as_toml(settings: Settings) -> str:
    """Every group and key, each below its description."""
    groups = type(settings).model_fields
    return "\n".join(line for name in groups for line in _group(name, getattr(settings, name)))


def _group(name: str, group: BaseModel) -> Iterator[str]:
    yield from _comment(type(group).__doc__ or "")
    yield f"[{name}]"
    for key, value in group:
        yield from _comment(type(group).model_fields[key].description or "")
        if value is None:
            yield f"# {key} is not set"
        else:
            written = tomli_w.dumps({name: {key: _plain(value)}})
            yield written.removeprefix(f"[{name}]\n").rstrip()
    yield ""


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _COMMENT_COLUMNS))


def _plain(value: Any) -> Any:
    """`value` as TOML knows it."""
    match value:
        case SecretStr():
            return MASK
        case BaseModel():
            return {key: _plain(inner) for key, inner in value if inner is not None}
        case tuple():
            return [_plain(inner) for inner in value]
        case str():
            return without_password(value)
        case float() if value == math.inf:
            return "never"
    return value
