"""What pydantic finds wrong in the configuration, as one error that names the key and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from memory.errors import ConfigError


def from_validation(error: ValidationError, model: type[BaseModel], *group: str) -> ConfigError:
    """The first fault. Its key is dotted and begins with `group`, the path from `model` to what
    was validated; an unknown key gets the nearest known one. Values are never shown."""
    detail = error.errors(include_url=False, include_input=False)[0]
    place = [*group, *detail["loc"]]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    key = key or "configuration"
    if detail["type"] == "extra_forbidden":
        known = model_at(model, [part for part in place[:-1] if isinstance(part, str)])
        return ConfigError(key, "unknown key", nearest(str(place[-1]), known))
    return ConfigError(key, detail["msg"].removeprefix("Value error, "))


def model_at(model: type[BaseModel], parts: Sequence[str]) -> type[BaseModel]:
    """The model of the table at this path, as far as the path is known."""
    for part in parts:
        field = model.model_fields.get(part)
        found = as_model(field.annotation) if field else None
        if found is None:
            break
        model = found
    return model


def as_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(as_model, get_args(annotation))), None)


def nearest(name: str, model: type[BaseModel]) -> str:
    """A hint at the field whose name is most like `name`."""
    near = difflib.get_close_matches(name.lower(), model.model_fields, n=1, cutoff=0.0)
    return f"the nearest known one is {near[0]!r}" if near else ""
