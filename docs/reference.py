"""The configuration as a page of documentation, from the fields themselves.

docs/configuration.md contains what `markdown_reference` returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ByteSize, SecretStr

from memory.durations import Duration, Ttl, duration_text
from service.auth.keys import AuthKey
from service.config.loading import as_model
from service.config.settings import PREFIX, Settings

_KINDS = {
    Duration: "duration",
    Ttl: "duration or `session`",
    ByteSize: "size",
    SecretStr: "secret",
    AuthKey: "`[[auth.keys]]`",
    datetime: "time",
    bool: "boolean",
    str: "text",
    int: "number",
    float: "number",
}


def markdown_reference() -> str:
    """A section for each group, with a table of its keys, types, defaults and descriptions."""
    lines: list[str] = []
    for name, field in Settings.model_fields.items():
        model = as_model(field.annotation)
        assert model is not None
        lines += _section(f"## `[{name}]`", model, f"{PREFIX}{name.upper()}__")
    lines += _section("### `[[auth.keys]]`", AuthKey, "")
    return "\n".join(lines)


def _section(title: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    about = " ".join((model.__doc__ or "").split())
    yield from (title, "", f"{about} Variables: `{prefix}…`." if prefix else about, "")
    yield from ("| key | type | default | what it is |", "|---|---|---|---|")
    types = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(types[name], field.default)
        kind = _kind(types[name]) + _bounds(field.metadata)
        what = " ".join((field.description or "").split())
        yield f"| `{name}` | {kind} | {default} | {what} |"
    yield ""


def _kind(type_: Any) -> str:
    """What a value of this type is, in a few words."""
    if type_ in _KINDS:
        return _KINDS[type_]
    parts = [part for part in get_args(type_) if part not in (NoneType, ...)]
    match get_origin(type_):
        case origin if origin is Literal:
            return " or ".join(f"`{value}`" for value in parts)
        case origin if origin is tuple:
            return f"list of {_kind(parts[0])}"
        case origin if origin in (Annotated, Union, UnionType):
            return _kind(parts[0])
    raise TypeError(f"no words for {type_}")


def _bounds(metadata: list[Any]) -> str:
    low = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in metadata if isinstance(m, Le)), None)
    above = next((m.gt for m in metadata if isinstance(m, Gt) and m.gt), None)
    if high is not None:
        return f", {low if low is not None else above or 'above 0'} to {high}"
    return "" if not low else f", at least {low}"


def _default(type_: Any, value: Any) -> str:
    """The default as it is written in strata.toml."""
    match value:
        case None:
            return "unset"
        case float() if type_ in (Duration, Ttl):
            return f"`{duration_text(value)}`"
        case ByteSize() if value % 1000 == 0:
            return f"`{value // 1000}kB`"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple():
            return f"`[{', '.join(map(_quoted, value))}]`"
        case str():
            return f"`{_quoted(value)}`"
    return f"`{value:g}`"


def _quoted(text: str) -> str:
    return f'"{text}"'
